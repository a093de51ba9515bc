"""Packages of others that a command admits: with `plugins=[mypackage]`, a `_target_` may name what mypackage defines.

Only the configuration of the command itself admits a package. That of a checkpoint never does: it asks for the word.
"""

import importlib
import re
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cotnet.config.compose import CONF
from cotnet.errors import InputError

OURS: Final = ("cotnet", "data", "train", "evaluate", "conf")
LIBRARIES: Final = ("torch", "torchvision", "timm", "numpy", "hydra", "hydra_plugins", "omegaconf", "wandb", "optuna")
# Settings that name a function by a `_target_` of their own -> what the function gets with each call.
FUNCTIONS: Final = {"backbone.operator": ("width", "stride", "dilation")}
_admitted: list[str] = []  # of this process


def admit(given: object) -> None:
    """Imports the packages of `plugins` and admits them in this process, instead of those admitted before.

    Raises:
        InputError: not a list of names of packages, a package of the application or a library of its, one that
            cannot be imported, or a configuration in its folder conf/ that has the name of one of the application.
    """
    _admitted.clear()
    names = list(given) if isinstance(given, list | tuple) else [given]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"plugins: {name} is not a package's name; write plugins=[mypackage]")
        if name in (*OURS, *LIBRARIES) or name in sys.stdlib_module_names:
            whose = "the application" if name in OURS else "a library"
            raise InputError(f"plugins=[{name}]: {name} is the name of a package of {whose}; name one of your own")
        try:
            package = importlib.import_module(name)
        except Exception as error:  # the package's own code runs here: it may raise anything
            raise InputError(f"plugins=[{name}] cannot be imported: {_reason(error, name)}") from None
        for folder in getattr(package, "__path__", ()):
            _require_own_names(name, Path(folder) / "conf")
    _admitted.extend(map(str, names))


def admitted() -> tuple[str, ...]:
    """The packages that this process admits."""
    return tuple(_admitted)


def admits(name: str) -> bool:
    """Whether a `_target_` is of an admitted package."""
    return name.partition(".")[0] in _admitted


def target(name: str, key: str) -> Callable[..., Any]:
    """The function or class that a `_target_` of the group `key` names; only what its package itself defines.

    Raises:
        InputError: it is not public, not there, or of another package.
    """
    package = name.partition(".")[0]
    module, _, own = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), own)
    except Exception as error:  # as in `admit`
        reason = _reason(error, package)
        raise InputError(f"{key}._target_ {name!r} cannot be imported: {reason}") from None
    home = str(getattr(found, "__module__", "")).partition(".")[0]
    if re.search(r"(^|\.)_", name) or not callable(found) or home != package:
        raise InputError(f"{key}._target_ {name!r} is not a public function or class that {package} defines")
    return typing.cast(Callable[..., Any], found)


def advice(name: object) -> str:
    """How to admit the package of a `_target_` that is not allowed; empty if it is no one else's."""
    package = str(name).partition(".")[0]
    known = package in (*OURS, *LIBRARIES) or package in sys.stdlib_module_names
    return "" if known or not package.isidentifier() else f"; to admit your package {package} add plugins=[{package}]"


def _require_own_names(name: str, conf: Path) -> None:
    """Raises InputError if a configuration below `conf` has the name of one of ours: Hydra would take ours."""
    for file in sorted(conf.rglob("*.yaml")):
        inside = file.relative_to(conf)
        if (CONF / inside).exists():
            raise InputError(f"plugins=[{name}]: {file} has the name of the application's conf/{inside}; rename it")


def _reason(error: Exception, package: str) -> str:
    """Why a package cannot be imported, and where, for people who write it."""
    text = next(iter(str(error).splitlines()), "an error without a text")
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return f"{text}; install it, or put the folder that holds it into PYTHONPATH"
    last = traceback.extract_tb(error.__traceback__)[-1]
    known = isinstance(error, SyntaxError) or "importlib" in last.filename
    return text if known else f"{text} ({last.filename}:{last.lineno})"
