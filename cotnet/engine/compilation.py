"""torch.compile as a setting: one graph per image size, with a cache that outlives the process and a restart."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from cotnet.errors import InputError

# The graphs of one model: training and evaluation at each image size. Beyond the limit torch would fall back to eager.
GRAPHS: Final = 64


def compiled(model: nn.Module, *, backend: str = "inductor") -> nn.Module:
    """A module that runs the model's compiled graphs, one for every size of the images and mode.

    The given model is left alone: called itself it runs eagerly, and the keys of its state dict are its own.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it announces that there is no GPU
    torch._dynamo.config.recompile_limit = GRAPHS
    graphs: Any = torch.compile(model, dynamic=False, backend=backend)
    return graphs


def cache_folder() -> Path:
    """Where compiled graphs are kept between runs; torch's own choice is a temporary folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cotnet" / "inductor"


def require_compiler(device: torch.device, key: str) -> None:
    """Raise InputError, naming the setting `key`, where torch.compile would find no compiler for this device's code."""
    gpu = device.type == "cuda"
    variable, names = ("CC", ("gcc", "clang")) if gpu else ("CXX", ("g++",))
    given = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([given] if given else names)):
        language, wanted = ("C", "gcc or clang") if gpu else ("C++", "g++")
        missing = f"{variable}={given} is not there" if given else f"neither {wanted} nor {variable} is there"
        raise InputError(f"{key}=true needs a {language} compiler ({missing}); install one, or set {key}=false")
