"""From the command line to typed objects: the only module that sees hydra and omegaconf.

`entry` turns a function of a plain dictionary into a Hydra program whose mistakes are one line each; `typed` turns a
node into a frozen dataclass; `build` turns a node with a `_target_` into an object, if the target is allowed.
"""

import dataclasses
import difflib
import functools
import hashlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cotnet.errors import InputError, RunError
from data.samples import DataError

T = TypeVar("T")
Config = dict[str, Any]

CONF = Path(__file__).resolve().parent.parent / "conf"
INTERRUPTED = 75  # EX_TEMPFAIL: the same command continues

# What a node of each group may name. A prefix such as `torch.` would let a configuration run any function in it.
TARGETS = {
    "optimizer": r"(torch\.optim|timm\.optim)\.[A-Z]\w*",
    "schedule": r"cotnet\.engine\.schedule\.[a-z]\w*",
    "augmentation": r"data\.augment\.[A-Z]\w*",
    "loader": r"data\.(dali|torchvision)\.[A-Z]\w*",
    "logger": r"cotnet\.engine\.loggers\.[A-Z]\w*",
    "backbone": r"cotnet\.models\.[a-z]\w*",
}
NOT_IN_NAME = ("output_dir", "launch", "hydra", "logger", "checkpoint")  # overrides that do not make another run

OmegaConf.register_new_resolver("per_256", lambda rate, batch_size: rate * batch_size / 256, replace=True)


# --- nodes to values ----------------------------------------------------------------------------------------------


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of an error line: the closest valid names, or all of them when none is close."""
    names = sorted(names)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"valid: {', '.join(names[:40])}" if names else "nothing is valid here"


def typed(cls: type[T], node: Mapping[str, Any], key: str) -> T:
    """The frozen dataclass `cls` from a configuration node.

    Raises InputError that names the key for an unknown, missing, mistyped or out-of-range value; `cls` checks its
    ranges in `__post_init__` by raising ValueError.
    """
    return _call(cls, node, key, {})


def build(node: Mapping[str, Any], key: str, **given: Any) -> Any:
    """Call what `node._target_` names with the node's other values and `given`; `key` is the group, which sets
    what may be named.

    Raises InputError for a target outside the group's allow-list and as `typed` does.
    """
    return _call(_target(node, key), _without_target(node), key, given)


def bind(node: Mapping[str, Any], key: str, *, later: tuple[str, ...], **given: Any) -> functools.partial[Any]:
    """`build`, but for a function whose arguments `later` come with each call."""
    target, values = _target(node, key), _without_target(node)
    return functools.partial(target, **_values(target, values, key, {*given, *later}), **given)


def check(node: Mapping[str, Any], key: str, given: Iterable[str]) -> None:
    """Raise what `build` would raise before calling, knowing only the names of what will be `given`."""
    target = _target(node, key)
    _values(target, _without_target(node), key, set(given))


def _target(node: Mapping[str, Any], key: str) -> Callable[..., Any]:
    name = node.get("_target_")
    if not isinstance(name, str) or not re.fullmatch(TARGETS[key], name):
        raise InputError(f"{key}._target_ {name!r} is not allowed; it must match {TARGETS[key]}")
    try:
        target = hydra.utils.get_object(name)
    except ImportError as error:
        raise InputError(f"{key}._target_ {name!r} cannot be imported: {str(error).splitlines()[-1]}") from None
    if not callable(target):
        raise InputError(f"{key}._target_ {name!r} is not a function or class")
    return target


def _without_target(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != "_target_"}


def _call(target: Callable[..., T], node: Mapping[str, Any], key: str, given: Mapping[str, Any]) -> T:
    values = _values(target, node, key, set(given))
    try:
        return target(**values, **given)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{key}: {str(error).splitlines()[0]}") from None


def _values(target: Callable[..., Any], node: Mapping[str, Any], key: str, given: set[str]) -> dict[str, Any]:
    parameters = inspect.signature(target).parameters
    is_class = isinstance(target, type) and not dataclasses.is_dataclass(target)
    hints = typing.get_type_hints(inspect.getattr_static(target, "__init__") if is_class else target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - given
    for name in node:
        if name not in names and not open_ended:
            raise InputError(f"{key}.{name} is not a setting; {nearest(name, names)}")
    for name in sorted(names - set(node)):
        if parameters[name].default is inspect.Parameter.empty:
            raise InputError(f"{key}.{name} is required; set {key}.{name}=VALUE")
    return {name: convert(value, hints.get(name, Any), f"{key}.{name}") for name, value in node.items()}


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint` wants it (an integer is a float, a list a tuple, a name a Path), or InputError."""
    if isinstance(value, Mapping) and "_target_" in value:
        raise InputError(f"{key}: a nested _target_ is not allowed")
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for option in typing.get_args(hint) if union else (hint,):
        converted = _as(value, option)
        if converted is not _UNFIT:
            return converted
    if typing.get_origin(hint) is typing.Literal:
        raise InputError(f"{key}={value} is unknown; {nearest(str(value), map(str, typing.get_args(hint)))}")
    raise InputError(f"{key}={value} is a {type(value).__name__}; wanted {_readable(hint)}")


_UNFIT: typing.Final = object()


def _as(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (tuple, list):
        return _as_sequence(value, origin, typing.get_args(hint))
    if origin is typing.Literal:
        return value if value in typing.get_args(hint) else _UNFIT
    if hint is Any or not isinstance(hint, type):  # cannot be checked here; the target checks it
        return value
    if hint is Path and isinstance(value, (str, int)):  # a folder may be called 1
        return Path(str(value))
    number = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    return value if isinstance(value, hint) and (number or hint is not int) else _UNFIT


def _as_sequence(value: Any, kind: type, hints: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        return _UNFIT
    if kind is list or hints[1:] == (...,):
        hints = hints[:1] * len(value)
    items = [_as(item, hint) for item, hint in zip(value, hints, strict=False)]
    return kind(items) if len(hints) == len(value) and _UNFIT not in items else _UNFIT


def _readable(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


# --- the command line ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One finished job of a `--multirun`: the name made of its overrides, its folder and its exit code."""

    name: str
    output_dir: Path
    code: int


def entry(config_name: str, *, after_sweep: Callable[[list[Trial]], None]) -> Callable[..., Callable[[], None]]:
    """Decorate `main(config) -> exit code` into a program composed from `conf/<config_name>.yaml`.

    `main` gets a resolved dictionary whose `output_dir` is filled in. Exit codes: what `main` returns; 1 for an error;
    2 for wrong configuration or input; 75 when interrupted. In a `--multirun` a failed trial does not end the others;
    `after_sweep` gets all trials, and the exit code is 1 if one failed.
    """

    def decorate(main: Callable[[Config], int]) -> Callable[[], None]:
        trials: list[Trial] = []

        @functools.wraps(main)
        def task(node: DictConfig) -> None:
            code = 2
            name, folder = run_name(HydraConfig.get().overrides.task), Path()
            multirun = HydraConfig.get().mode == RunMode.MULTIRUN
            with one_line(multirun) as outcome:
                config = resolve(node)
                base = None if config["output_dir"] is None else str(config["output_dir"])  # a folder may be called 1
                folder = Path(base) if base and not multirun else Path(base or "outputs") / name
                code = main({**config, "output_dir": str(folder)})
            code = outcome.code or code
            if not multirun or code == INTERRUPTED:
                sys.exit(code)
            trials.append(Trial(name=name, output_dir=folder, code=code))

        def program() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors through to us: it would print several lines
            with one_line(keep=False):
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
            if trials:
                after_sweep(trials)
                sys.exit(int(any(trial.code for trial in trials)))

        return program

    return decorate


class one_line:  # noqa: N801 - a context manager that reads as a statement
    """Print a person's mistake as one line and exit with its code, or keep the code in `code` when `keep` is set."""

    def __init__(self, keep: bool) -> None:  # noqa: FBT001
        self.keep = keep
        self.code = 0

    def __enter__(self) -> "one_line":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        line = explain(error)
        if line is None:
            return False
        print(f"error: {line}" if not isinstance(error, KeyboardInterrupt) else line, file=sys.stderr, flush=True)  # noqa: T201
        self.code = {RunError: 1, KeyboardInterrupt: INTERRUPTED}.get(kind or Exception, 2)
        if not self.keep or self.code == INTERRUPTED:
            sys.exit(self.code)
        return True


def explain(error: BaseException | None) -> str | None:
    """One line for what a person can mend, None for anything else."""
    cause = error.__cause__ if isinstance(error, HydraException) else error
    match error:
        case InputError() | DataError() | RunError():
            return str(error)
        case KeyboardInterrupt():
            return "interrupted; the same command starts again"
        case MissingConfigException(missing_cfg_file=str(file), options=[*options]):
            group, _, member = file.rpartition("/")
            return f"{group}={member} is unknown; {nearest(member, options)}"
    if isinstance(cause, OmegaConfBaseException):
        return _explain_key(cause)
    return " ".join(str(error).partition("See http")[0].split()) if isinstance(error, HydraException) else None


def _explain_key(error: OmegaConfBaseException) -> str:
    parent = error.parent_node
    key = str(error.full_key or error.key or "")
    name = key.rpartition(".")[2]
    if isinstance(parent, DictConfig) and name and name not in parent:
        if "[" in name:
            return f"{key} is not a setting"
        return f"{key} is not a setting; {nearest(name, [str(k) for k in parent])}"
    return f"{key}: " + str(error).splitlines()[0]


def resolve(node: DictConfig) -> Config:
    """The composed configuration as plain containers, interpolations resolved; a missing `???` is named."""
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise InputError(f"{missing[0]} is required; set {missing[0]}=VALUE")
    return typing.cast(Config, OmegaConf.to_container(node, resolve=True))


def run_name(overrides: Iterable[str]) -> str:
    """A folder name made of the overrides: no clock in it, so that the same command finds its run again."""
    kept = sorted(o for o in overrides if not re.match(rf"[+~]*({'|'.join(NOT_IN_NAME)})\b", o))
    name = re.sub(r"[^\w.,=+~-]+", "_", ",".join(kept)) or "default"
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def compose(config_name: str, overrides: list[str]) -> Config:
    """The resolved configuration without running anything, as the command line would compose it."""
    program_runs = GlobalHydra.instance().is_initialized()  # from conf/ as well
    with nullcontext() if program_runs else hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return resolve(hydra.compose(config_name, overrides=overrides))


# --- configuration files of a run ---------------------------------------------------------------------------------


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(config))


def from_yaml(path: Path) -> Config:
    try:
        return typing.cast(Config, OmegaConf.to_container(OmegaConf.load(path)))
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise InputError(f"{path} is not a run's configuration: {str(error).splitlines()[0]}") from None


def flatten(config: Mapping[str, Any], prefix: str = "") -> Config:
    """{'train': {'epochs': 3}} -> {'train.epochs': 3}."""
    flat: Config = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
