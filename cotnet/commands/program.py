"""What every program shares: the command line, and one line per error."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cotnet.commands.reference import help_page
from cotnet.config.build import nearest, shown
from cotnet.config.compose import CONF, Config, flatten, own_config, resolve
from cotnet.config.continuing import default_folder
from cotnet.config.plugins import admit
from cotnet.engine.rank_environment import adopt_slurm
from cotnet.errors import FAILED, INTERRUPTED, WRONG_INPUT, InputError, RunError
from cotnet.sweeps.command import register_sweeper, require_own_sweeper


def write_report(folder: Path) -> None:
    """The page of a sweep."""
    from cotnet.pages.folders import try_report  # imports torch, for which --help does not wait

    if page := try_report(folder):
        print(f"to look at it: {page}", flush=True)  # noqa: T201


register_sweeper(write_report)


def entry(config_name: str, *, outputs: str) -> Callable[..., Callable[[], None]]:
    """Makes a program of `main(config) -> exit code`, composed from `conf/<config_name>.yaml`.

    `main` gets a resolved dictionary with an `output_dir`, by default a folder in `outputs`. Exit codes: main's; 1 for
    an error; 2 for wrong configuration or input; 75 when interrupted. With `--multirun`, `cotnet.sweeps` runs the
    program once per trial.
    """

    def decorate(main: Callable[[Config], int]) -> Callable[[], None]:
        @functools.wraps(main)
        def task(node: DictConfig) -> int:
            code = WRONG_INPUT
            multirun = HydraConfig.get().mode == RunMode.MULTIRUN  # a job of a launcher: its sweeper asks for the code
            with one_line(keep=False):
                require_own_sweeper()
            with one_line(multirun) as outcome:
                config = resolve(node)
                admit(config.get("plugins", ()))
                overrides = HydraConfig.get().overrides.task
                if config.pop("sweep", None) and any(o.startswith(("sweep=", "sweep.")) for o in overrides):
                    raise InputError("sweep settings need --multirun; add it, or leave them out for a single run")
                given = config["output_dir"]  # a folder may be called 1
                if isinstance(given, list | dict | bool):
                    raise InputError(f"output_dir={shown(given)} must be a path, or null for a folder of its own")
                root = config_name != "train"
                words = [*own_config(HydraConfig.get().job.config_name), *overrides]
                folder = default_folder(Path(outputs), words, root=root) if given is None else given
                code = main({**config, "output_dir": str(folder)})
            code = outcome.code or code
            if not multirun:
                sys.exit(code)
            return code

        def program() -> None:
            adopt_slurm()  # first of all: the tasks of one srun are ranks of one run
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing several lines
            with one_line(keep=False):
                if {"--help", "-h"} & set(sys.argv[1:]):
                    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
                    print(help_page(config_name, overrides, str(sys.modules[main.__module__].__doc__)))  # noqa: T201
                    sys.exit(0)
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()

        return program

    return decorate


class one_line:  # noqa: N801 - a context manager that reads as a statement
    """Prints an error that a person can mend as one line; exits with its code, or keeps it in `code` if `keep`."""

    def __init__(self, keep: bool) -> None:  # noqa: FBT001
        self.keep = keep
        self.code = 0

    def __enter__(self) -> "one_line":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        line = in_one_line(error)
        if line is None:
            return False
        print(f"error: {line}" if not isinstance(error, KeyboardInterrupt) else line, file=sys.stderr, flush=True)  # noqa: T201
        self.code = {RunError: FAILED, KeyboardInterrupt: INTERRUPTED}.get(kind or Exception, WRONG_INPUT)
        if not self.keep:
            sys.exit(self.code)
        return True


def in_one_line(error: BaseException | None) -> str | None:
    """One line for an error that a person can mend; None for a bug."""
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(error, PermissionError) and error.filename:
        error = InputError(f"cannot access {error.filename}: {error.strerror}; change its permissions")
    match error:
        case InputError() | RunError():
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
    settings = cast(Config, OmegaConf.to_container(parent, resolve=False))
    settings.pop("hydra", None)
    elsewhere = [f"{prefix}{k}" for k in flatten(settings) if k.endswith(f".{name}")]
    if elsewhere:
        return f"{key} is not a setting; did you mean {' or '.join(elsewhere[:3])}?"
    recipes = ["experiment"] if not above and "train" in settings else []  # a group that leaves no key behind
    return f"{key} is not a setting; {nearest(name, [*settings, *recipes], prefix=prefix)}"
