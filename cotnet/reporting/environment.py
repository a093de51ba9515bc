"""The machine of a run, installed versions, and the state of the code's repository."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

CODE = Path(__file__).resolve().parent.parent.parent
_PACKAGES: Final = (
    "torch",
    "torchvision",
    "timm",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "triton",
    "numpy",
    "pillow",
)


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory in GiB, GPUs and installed versions."""
    model = ""
    if (info := Path("/proc/cpuinfo")).exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpus": gpus,
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def start_of(step: int, ranks: int) -> dict[str, Any]:
    """A record of a process that starts or continues a run at `step`; holds no host name."""
    return {
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
    if not tracked or not commit or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


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
