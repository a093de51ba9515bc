"""torch.compile as a setting: one graph per image size, cached on the disk between runs."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import nn

from cotnet.errors import InputError
from cotnet.ops.toolchain import missing_compiler, missing_for_kernels
from cotnet.settings import Compile

# Graphs of one model: training and evaluation at each image size. Beyond the limit torch falls back to eager mode.
GRAPHS: Final = 64


def compiled(model: nn.Module, *, mode: str = "default", backend: str = "inductor") -> nn.Module:
    """A module that runs the compiled model. The model itself stays eager and keeps its state-dict keys."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports that there is no GPU
    torch._dynamo.config.recompile_limit = GRAPHS
    graphs: Any = torch.compile(model, dynamic=False, mode=mode, backend=backend)
    return graphs


def compile_mode(given: Compile, device: torch.device) -> str | None:
    """torch's mode for a setting on this device; None: not compiled. `auto` compiles on a GPU, if it can."""
    if given == "auto":
        return "default" if device.type == "cuda" and not missing_compilers(device) else None
    return "default" if given is True else given or None


def compiled_or_not(
    model: nn.Module,
    given: Compile,
    *,
    key: str,
    device: torch.device,
    trial: Callable[[nn.Module], object],
    any_rank: Callable[[bool], bool],
) -> tuple[nn.Module, str | None]:
    """The model, compiled if the setting `key` says so, and a line for people if `auto` cannot compile it; collective.

    `trial` runs what is to be compiled, because torch compiles at the first call. Raises InputError if compiling fails
    and the setting is not `auto`.
    """
    mode, why, graphs = compile_mode(given, device), "", model
    if mode is not None:
        graphs = compiled(model, mode=mode)
        try:
            trial(graphs)
        except (torch.OutOfMemoryError, MemoryError, InputError):
            raise
        except Exception as error:
            if given != "auto":
                _refuse(error, key, given)
            why = f"compiling failed: {_reason(error)}"
    elif given == "auto" and device.type == "cuda":
        why = f"torch.compile needs {missing_compilers(device)}"
    else:
        return model, None
    if any_rank(bool(why)):
        return model, f"{key}=auto: not compiled; {why or 'another rank cannot compile'}"
    return graphs, None


def _refuse(error: Exception, key: str, given: Compile) -> NoReturn:
    """Raises InputError for an error of the compiler, the error itself for any other."""
    if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
        raise error
    value = str(given).lower()
    raise InputError(f"{key}={value} failed: {_reason(error)}; set {key}=auto or false") from error


def _reason(error: Exception) -> str:
    """The line of an error's text that says what is wrong; torch puts the backend's name before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = (line for line in lines if not line.endswith("raised:"))
    return next(told, type(error).__name__).rstrip(".")


def cache_folder() -> Path:
    """Folder of the compiled graphs; torch's own default is a temporary folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cotnet" / "inductor"


def require_compiler(device: torch.device, key: str, value: Compile = True) -> None:  # noqa: FBT002
    """Raises InputError, naming the setting `key`, if torch.compile would find no compiler for this device."""
    if lacking := missing_compilers(device):
        raise InputError(f"{key}={str(value).lower()} needs {lacking}, or set {key}=false")


def missing_compilers(device: torch.device) -> str:
    """What torch.compile needs for this device and this machine lacks, with the remedy; empty if it lacks nothing."""
    if device.type == "cuda":
        return missing_for_kernels()
    why = missing_compiler("CXX", ("g++",))
    return f"a C++ compiler ({why}); install one" if why else ""
