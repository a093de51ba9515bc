"""torch.compile as a setting: one graph per image size, cached on the disk between runs."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from cotnet.errors import InputError

# Graphs of one model: training and evaluation at each image size. Beyond the limit torch falls back to eager mode.
GRAPHS: Final = 64


def compiled(model: nn.Module, *, backend: str = "inductor") -> nn.Module:
    """A module that runs the compiled model. The model itself stays eager and keeps its state-dict keys."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports that there is no GPU
    torch._dynamo.config.recompile_limit = GRAPHS
    graphs: Any = torch.compile(model, dynamic=False, backend=backend)
    return graphs


def cache_folder() -> Path:
    """Folder of the compiled graphs; torch's own default is a temporary folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cotnet" / "inductor"


def require_compiler(device: torch.device, key: str) -> None:
    """Raises InputError, naming the setting `key`, if torch.compile would find no compiler for this device."""
    gpu = device.type == "cuda"
    variable, names = ("CC", ("gcc", "clang")) if gpu else ("CXX", ("g++",))
    given = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([given] if given else names)):
        language, wanted = ("C", "gcc or clang") if gpu else ("C++", "g++")
        missing = f"{variable}={given} is not there" if given else f"neither {wanted} nor {variable} is there"
        raise InputError(f"{key}=true needs a {language} compiler ({missing}); install one, or set {key}=false")
