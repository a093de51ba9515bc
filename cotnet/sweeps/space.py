"""Read what a sweep varies, in Hydra's grammar: `1,2`, `choice`, `range`, `interval`, `tag(log, interval(...))`."""

import contextlib
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from cotnet.config.continuing import folder_name
from cotnet.errors import InputError
from cotnet.settings import Section, setting

GRAMMAR = (
    "write 1,2 or choice(a,b) or glob(a*) or range(1,9,2) or interval(0.1,1) or int(interval(1,8)) or "
    "tag(log,interval(0.01,1))"
)


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Section):
    """`sweep` of the configuration: of a `--multirun` only."""

    sampler: Literal["grid", "random", "tpe"] = setting("`grid`: every combination; `random`; `tpe`: Bayesian search")
    space: Mapping[str, Any] = setting(
        "what varies, by key: `1, 2`, `choice(a, b)`, `glob(a*)`, `range(1, 9, 2)`, `interval(0.1, 1)`, "
        "`int(interval(1, 8))` or `tag(log, interval(0.01, 1))`; the command line adds to it"
    )
    target: str = setting("the figure of `metrics.jsonl` whose best value counts")
    direction: Literal["maximize", "minimize"] = setting("`maximize` or `minimize` the target")
    parallel: int = setting(
        "trials at a time, each with an equal share of the GPUs (`CUDA_VISIBLE_DEVICES`), or of the cores without GPUs",
        least=1,
    )
    retry: bool = setting("run failed trials again")
    trials: int | None = setting("of a search: the number of trials", least=1)
    startup: int = setting("of `tpe`: random trials before it begins", least=1)
    seed: int = setting("of a search: the seed of its draws")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search and self.trials is None:
            raise ValueError(
                f"trials=null, but sweep.sampler={self.sampler} wants to know when to end; set sweep.trials=N"
            )
        if not self.search and self.trials is not None:
            raise ValueError(
                f"trials={self.trials} is for a search; a grid runs every combination (sweep=tpe searches)"
            )

    @property
    def search(self) -> bool:
        return self.sampler != "grid"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A setting that varies: over `values`, or from `low` to `high`, both included; a range of numbers has both.
    `text` is what was given."""

    key: str
    text: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    integer: bool = False

    @property
    def options(self) -> list[str]:
        """Overrides that show whether the key can be set: every value, or both ends of an interval."""
        if self.values or self.low is None or self.high is None:
            return [f"{self.key}={value}" for value in self.values]
        return [self.override(self.low), self.override(self.high)]

    def override(self, value: float | str) -> str:
        """`key=value`; numbers have six significant digits and stay within the bounds."""
        if self.low is not None and self.high is not None and not isinstance(value, str):
            value = int(value) if self.integer else min(max(float(f"{value:.6g}"), self.low), self.high)
        return f"{self.key}={value}"

    def parsed(self, text: str) -> float | str:
        """The value in an override: a number where the setting has a range."""
        return text if self.low == self.high else int(text) if self.integer else float(text)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep: the name of its folder, and the overrides that only this run has."""

    name: str
    overrides: tuple[str, ...]

    @property
    def settings(self) -> dict[str, str]:
        """Value by key."""
        return dict(override.split("=", 1) for override in self.overrides)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a command line asks for: `shared` overrides go to every trial, `parameters` vary."""

    settings: SweepSettings
    folder: Path
    shared: list[str]
    parameters: list[Parameter]

    @property
    def total(self) -> int:
        """How many trials there are in all."""
        return self.settings.trials or math.prod(len(parameter.values) for parameter in self.parameters)


def read(overrides: Iterable[str]) -> tuple[list[str], list[Parameter]]:
    """Split overrides into those with one value and those that vary. The last one for a key counts. Raises InputError
    for an empty range, OverrideParseException for what Hydra cannot read. `glob` wants Hydra to be initialized: it
    knows the members of groups."""
    single: dict[str, str] = {}
    varied: dict[str, Parameter] = {}
    hydra = GlobalHydra.instance()
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)
    for override in parser.parse_overrides(list(overrides)):
        key = override.get_key_element()
        single.pop(key, None)
        varied.pop(key, None)
        if override.is_sweep_override():
            varied[key] = _parameter(key, override)
        else:
            single[key] = str(override.input_line)
    return list(single.values()), list(varied.values())


def read_space(space: Mapping[str, Any]) -> list[str]:
    """`sweep.space` as overrides. Raises InputError for a value that cannot be read or does not vary."""
    overrides = [f"{key}={value}" for key, value in space.items()]
    for override in overrides:
        varied: list[Parameter] = []
        with contextlib.suppress(HydraException):
            varied = read([override])[1]
        if not varied:
            raise InputError(f"sweep.space: {override} does not say what to try; {GRAMMAR}")
    return overrides


def _parameter(key: str, override: Override) -> Parameter:
    value, text = override.value(), str(override.input_line).partition("=")[2]
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        low, high = cast(tuple[float, float], (value.start, value.end))
        if low >= high:
            raise InputError(f"{key}: the range from {low:g} to {high:g} is empty; {GRAMMAR}")
        if log and low <= 0:
            raise InputError(f"{key}: a logarithmic range begins above 0, not at {low:g}")
        integer = isinstance(low, int) and isinstance(high, int)
        return Parameter(key=key, text=text, low=low, high=high, log=log, integer=integer)
    if log or (isinstance(value, Glob) and override.config_loader is None):
        raise InputError(f"{override.input_line} cannot be swept; {GRAMMAR}")
    values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        missing = f"{override.key_or_group} has no member of such a name"
        what = missing if isinstance(value, Glob) else "the range is empty"
        raise InputError(f"{override.input_line}: {what}; {GRAMMAR}")
    if not isinstance(value, RangeSweep):
        return Parameter(key=key, text=text, values=values)
    numbers, step = [float(number) for number in values], cast(float, value.step)
    integer, low, high = isinstance(value.start, int) and isinstance(step, int), min(numbers), max(numbers)
    return Parameter(key=key, text=text, values=values, low=low, high=high, step=abs(step), integer=integer)


def grid(parameters: Sequence[Parameter]) -> list[tuple[str, ...]]:
    """The overrides of every combination; the last setting varies fastest. Raises InputError for an interval."""
    for p in parameters:
        if not p.values:
            raise InputError(f"{p.key}: a grid cannot visit every number of an interval; list values or add sweep=tpe")
    return list(product(*(p.options for p in parameters)))


def name_trials(combinations: Iterable[Sequence[str]], known: Iterable[Trial]) -> list[Trial]:
    """A trial for each combination of overrides: the `known` one, or a new one with a name of its own."""
    trials = {frozenset(trial.overrides): trial for trial in known}
    names = {trial.name for trial in trials.values()}
    asked = []
    for overrides in combinations:
        name = folder_name(overrides)
        if name in names:  # the overrides differ in characters that a folder's name cannot hold
            name += "-" + hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
        asked.append(trials.setdefault(frozenset(overrides), Trial(name=name, overrides=tuple(overrides))))
        names.add(asked[-1].name)
    return asked


def quoted(key: str, value: object) -> str:
    """An override that Hydra reads as this very text."""
    text = str(value)
    escaped = text.replace("'", "\\'")
    return f"{key}={text}" if re.fullmatch(r"[\w./+-]+", text) else f"{key}='{escaped}'"
