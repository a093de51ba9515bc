"""From the command line to a resolved dictionary: the only module that sees hydra and omegaconf.

`entry` turns a function of a plain dictionary into a Hydra program whose mistakes are one line each.
"""

import functools
import hashlib
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cotnet.continuing import names_run
from cotnet.engine.outside import adopt_slurm
from cotnet.errors import FAILED, INTERRUPTED, WRONG_INPUT, InputError, RunError
from cotnet.nodes import nearest, shown
from data.samples import DataError

# What a person gives for a setting that has no default.
EXAMPLES = {
    "checkpoint": "PATH, for example checkpoint=outputs/demo/checkpoints/best.pt",
    "data.root": "DIR, the folder that holds train/ and val/, for example data.root=datasets/imagenet",
    "backbone.model_name": "NAME, for example backbone.model_name=resnet50",
}

T = TypeVar("T")
Config = dict[str, Any]

CONF = Path(__file__).resolve().parent.parent / "conf"


def _per_256(rate: Any, batch_size: Any) -> Any:
    """The learning rate for a batch; None where the types are wrong, which is said when they are checked."""
    numbers = all(isinstance(value, (int, float)) for value in (rate, batch_size))
    return rate * batch_size / 256 if numbers else None


OmegaConf.register_new_resolver("per_256", _per_256, replace=True)
OmegaConf.register_new_resolver("first", lambda *values: next(v for v in values if v is not None), replace=True)


# --- the command line ---------------------------------------------------------------------------------------------


def entry(config_name: str, *, outputs: str) -> Callable[..., Callable[[], None]]:
    """Decorate `main(config) -> exit code` into a program composed from `conf/<config_name>.yaml`.

    `main` gets a resolved dictionary whose `output_dir` is filled in: by default a folder in `outputs`. Exit codes:
    what `main` returns; 1 for an error; 2 for wrong configuration or input; 75 when interrupted. With `--multirun`
    `cotnet.sweeps` runs the program once per trial, with an output_dir each.
    """

    def decorate(main: Callable[[Config], int]) -> Callable[[], None]:
        @functools.wraps(main)
        def task(node: DictConfig) -> int:
            code = WRONG_INPUT
            multirun = HydraConfig.get().mode == RunMode.MULTIRUN  # a job of a launcher: its sweeper asks for the code
            with one_line(multirun) as outcome:
                config = resolve(node)
                overrides = HydraConfig.get().overrides.task
                if config.pop("sweep", None) and any(o.startswith(("sweep=", "sweep.")) for o in overrides):
                    raise InputError("sweep settings need --multirun; add it, or leave them out for a single run")
                given = config["output_dir"]  # a folder may be called 1
                if isinstance(given, list | dict | bool):
                    raise InputError(f"output_dir={shown(given)} must be a path, or null for a folder of its own")
                folder = default_folder(Path(outputs), overrides) if given is None else str(given)
                code = main({**config, "output_dir": str(folder)})
            code = outcome.code or code
            if not multirun:
                sys.exit(code)
            return code

        def program() -> None:
            adopt_slurm()  # before anything is printed, drawn or started: the tasks of one srun are ranks
            os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors through to us: it would print several lines
            with one_line(keep=False):
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()

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
        self.code = {RunError: FAILED, KeyboardInterrupt: INTERRUPTED}.get(kind or Exception, WRONG_INPUT)
        if not self.keep:
            sys.exit(self.code)
        return True


def explain(error: BaseException | None) -> str | None:
    """One line for what a person can mend, None for anything else."""
    cause = error.__cause__ if isinstance(error, HydraException) else error
    match error:
        case InputError() | DataError() | RunError():
            return str(error)
        case OverrideParseException():
            quoted = "\"key='value'\""
            return f"cannot read {error.override}: write key=value, and {quoted} where a value holds = , or a bracket"
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
    above, _, name = key.rpartition(".")
    if not isinstance(parent, DictConfig) or not name or name in parent:
        return f"{key}: " + str(error).splitlines()[0]
    if "[" in name:
        return f"{key} is not a setting"
    prefix = f"{above}." if above else ""
    settings = typing.cast(Config, OmegaConf.to_container(parent, resolve=False))
    settings.pop("hydra", None)
    elsewhere = [f"{prefix}{k}" for k in flatten(settings) if k.endswith(f".{name}")]
    if elsewhere:
        return f"{key} is not a setting; did you mean {' or '.join(elsewhere[:3])}?"
    recipes = ["experiment"] if not above and "train" in settings else []  # a group that leaves no key behind
    return f"{key} is not a setting; {nearest(name, [*settings, *recipes], prefix=prefix)}"


def resolve(node: DictConfig) -> Config:
    """The composed configuration as plain containers, interpolations resolved; a missing `???` is named.

    A run is explained without images too: `data.root` is null then.
    """
    if node.get("explain") and OmegaConf.is_missing(node.data, "root"):
        node.data.root = None
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        example = EXAMPLES.get(missing[0], "VALUE")
        raise InputError(f"{missing[0]} is required; set {missing[0]}={example}")
    return typing.cast(Config, OmegaConf.to_container(node, resolve=True))


def run_name(overrides: Iterable[str]) -> str:
    """A folder name for the run that the overrides make: no clock in it, so that the same command finds it again."""
    return folder_name(filter(names_run, overrides))


def default_folder(outputs: Path, overrides: Iterable[str]) -> Path:
    """Where the run of these overrides lies. Version 0.1 named folders by settings that may change, too: a run that it
    began goes on in its folder."""
    free = r"[+~]*(output_dir=|explain=|(launch|checkpoint|logger|hydra)[./]|logger=)"
    before = outputs / folder_name(override for override in overrides if not re.match(free, override))
    return before if (before / "checkpoints").exists() else outputs / run_name(overrides)


def folder_name(overrides: Iterable[str]) -> str:
    """The overrides as a folder's name."""
    parts = sorted(override.replace("=", "-") for override in overrides)
    name = re.sub(r"[^\w.+~-]+", "_", "__".join(parts)) or "default"  # what neither a shell nor Hydra's grammar reads
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def chosen(group: str) -> str | None:
    """The member of a group that the command line chose; null outside a program."""
    if not HydraConfig.initialized():
        return None
    name = HydraConfig.get().runtime.choices.get(group)
    return None if name is None else str(name)


def compose(config_name: str, overrides: list[str]) -> Config:
    """The resolved configuration without running anything, as the command line would compose it."""
    program_runs = GlobalHydra.instance().is_initialized()  # from conf/ as well
    with nullcontext() if program_runs else hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = resolve(hydra.compose(config_name, overrides=overrides))
        config.pop("sweep", None)  # about several runs
        return config


# --- configuration files of a run ---------------------------------------------------------------------------------


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(config))


def flatten(config: Mapping[str, Any], prefix: str = "") -> Config:
    """{'train': {'epochs': 3}} -> {'train.epochs': 3}."""
    flat: Config = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def read_yaml(path: Path) -> Config:
    """A file that `to_yaml` wrote."""
    return typing.cast(Config, OmegaConf.to_container(OmegaConf.load(path)))
