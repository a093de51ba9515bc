"""The machine of a run, installed versions, and the state of the code's repository."""

import contextlib
import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

CODE = Path(__file__).resolve().parent.parent.parent
_DALI: Final = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
_PACKAGES: Final = ("torch", "torchvision", "timm", *_DALI, "triton", "numpy", "pillow")


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory in GiB, GPUs and installed versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
    }


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)", info.read_text(), re.MULTILINE) if info.exists() else None
    return model[1].strip() if model else platform.machine()


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def start_of(step: int, ranks: int) -> dict[str, Any]:
    """A record of a process that starts or continues a run at `step`; holds no host name."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "ranks": ranks,
        "git": git_state(CODE),
        "cuda": torch.version.cuda,
        "driver": driver(),
        **machine(),
    }


def git_state(code: Path) -> dict[str, Any] | None:
    """The commit of the code's repository, and whether the code differs from it; None without a repository."""
    tracked = _git(code, "ls-files", "--error-unmatch", "cotnet/reporting/environment.py")  # not one around .venv
    commit = _git(code, "rev-parse", "HEAD")
    changes = _git(code, "status", "--porcelain", "--", "*.py", "*.yaml", "*.toml")
    return {"commit": commit, "dirty": bool(changes)} if tracked and commit and changes is not None else None


def _git(folder: Path, *command: str) -> str | None:
    """What git prints; None if it fails, is missing or takes too long."""
    try:
        done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def driver(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of NVIDIA's driver, from its kernel module's file; None without one."""
    found = re.search(r"Module.*?\s(\d+\.\d[\d.]*)\s", file.read_text()) if file.exists() else None
    return found[1] if found else None
