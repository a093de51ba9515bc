"""What a sweep varies, read from Hydra's grammar: `1,2`, `choice`, `range`, `interval`, `tag(log, interval(...))`."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from cotnet.config.continuing import folder_name
from cotnet.errors import InputError

GRAMMAR = (
    "write 1,2 or choice(a,b) or range(1,9,2) or interval(0.1,1) or int(interval(1,8)) or tag(log,interval(0.01,1))"
)


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """`sweep` of the configuration."""

    sampler: Literal["grid", "random", "tpe"]
    space: Mapping[str, Any]
    target: str
    direction: Literal["maximize", "minimize"]
    parallel: int
    retry: bool
    trials: int | None
    startup: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("parallel", "trials", "startup"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
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
    """A setting that varies over `values`, written as on the command line, or over `low` to `high`, both included.

    A range of numbers has both: its values for a grid, its bounds and `step` for a search.
    """

    key: str
    text: str = ""  # as it was given
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        if self.low is None or self.high is None:
            return
        if self.low >= self.high and not self.values:
            raise InputError(f"{self.key}: the range from {self.low:g} to {self.high:g} is empty; {GRAMMAR}")
        if self.log and self.low <= 0:
            raise InputError(f"{self.key}: a logarithmic range begins above 0, not at {self.low:g}")

    @property
    def options(self) -> list[str]:
        """Overrides that show whether it can be set: every value, or the ends of a range."""
        if self.values or self.low is None or self.high is None:
            return [f"{self.key}={value}" for value in self.values]
        return [self.written(self.low), self.written(self.high)]

    def written(self, value: float | str) -> str:
        """The override that sets it; numbers with six significant digits, within the bounds."""
        if self.low is not None and self.high is not None and not isinstance(value, str):
            value = int(value) if self.integer else min(max(float(f"{value:.6g}"), self.low), self.high)
        return f"{self.key}={value}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep: its folder's name and the overrides that make it this one."""

    name: str
    overrides: tuple[str, ...]

    @property
    def settings(self) -> dict[str, str]:
        """What varies, by key."""
        return dict(override.split("=", 1) for override in self.overrides)


def read(overrides: Iterable[str]) -> tuple[list[str], list[Parameter]]:
    """The overrides that have one value, and what varies. The last word on a key counts.

    Raises InputError for an empty range, OverrideParseException for what Hydra cannot read.
    """
    single: dict[str, str] = {}
    varied: dict[str, Parameter] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        single.pop(key, None)
        varied.pop(key, None)
        if override.is_sweep_override():
            varied[key] = _parameter(key, override)
        else:
            single[key] = str(override.input_line)
    return list(single.values()), list(varied.values())


def read_space(space: Mapping[str, Any]) -> list[str]:
    """`sweep.space` as overrides.

    Raises InputError for what cannot be read or does not vary.
    """
    overrides = [f"{key}={value}" for key, value in space.items()]
    for override in overrides:
        try:
            varies = OverridesParser.create().parse_override(override).is_sweep_override()
        except HydraException:
            varies = False
        if not varies:
            raise InputError(f"sweep.space: {override} does not say what to try; {GRAMMAR}")
    return overrides


def _parameter(key: str, override: Override) -> Parameter:
    value, text = override.value(), str(override.input_line).partition("=")[2]
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        return Parameter(
            key=key,
            text=text,
            low=value.start,
            high=value.end,
            log="log" in value.tags,
            integer=isinstance(value.start, int) and isinstance(value.end, int),
        )
    if isinstance(value, Glob) or "log" in getattr(value, "tags", ()):
        raise InputError(f"{override.input_line} cannot be swept; {GRAMMAR}")
    values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise InputError(f"{override.input_line}: the range is empty; {GRAMMAR}")
    if isinstance(value, RangeSweep):
        assert value.step is not None
        numbers = [float(number) for number in values]
        integer = all(isinstance(number, int) for number in (value.start, value.step))
        return Parameter(
            key=key,
            text=text,
            values=values,
            low=min(numbers),
            high=max(numbers),
            step=abs(value.step),
            integer=integer,
        )
    return Parameter(key=key, text=text, values=values)


def grid(parameters: Sequence[Parameter]) -> list[tuple[str, ...]]:
    """The overrides of every combination, the last setting varying fastest."""
    for parameter in parameters:
        if not parameter.values:
            raise InputError(
                f"{parameter.key}: a grid cannot visit every number of an interval; list values or add sweep=tpe"
            )
    return list(product(*([f"{p.key}={value}" for value in p.values] for p in parameters)))


def name_trials(combinations: Iterable[Sequence[str]], known: Iterable[Trial]) -> list[Trial]:
    """A trial for each combination of overrides: the `known` one, or a new one whose name no other has."""
    by_overrides = {frozenset(trial.overrides): trial for trial in known}
    names = {trial.name for trial in by_overrides.values()}
    trials = []
    for overrides in combinations:
        identity = frozenset(overrides)
        if identity not in by_overrides:
            name = folder_name(overrides)
            if name in names:  # what a folder's name cannot hold may differ
                name += "-" + hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
            by_overrides[identity] = Trial(name=name, overrides=tuple(overrides))
            names.add(name)
        trials.append(by_overrides[identity])
    return trials


def quoted(key: str, value: object) -> str:
    """An override that Hydra reads as this very text."""
    text = str(value)
    if re.fullmatch(r"[\w./+-]+", text):
        return f"{key}={text}"
    escaped = text.replace("'", "\\'")
    return f"{key}='{escaped}'"
