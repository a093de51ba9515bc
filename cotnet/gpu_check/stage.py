"""What the stages of the check share: where they run, what they find, and how they start other programs."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch

from cotnet.errors import RunError

ROOT: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A device, and a folder for files. Without a GPU every stage runs in small."""

    device: torch.device
    folder: Path

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def on_gpu(self, passed: bool) -> bool | None:  # noqa: FBT001
        """A verdict that only a GPU can give; None without one."""
        return passed if self.gpu else None


class Claim(NamedTuple):
    """A claim, the figure that was measured, and the verdict; None: not checked here."""

    claim: str
    figure: str
    passed: bool | None


Stage = Callable[[Bench], Iterator[Claim]]


def run_python(*arguments: str, seconds: float) -> str:
    """What a Python program of this project prints. Raises RunError if it fails or takes longer."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{' '.join(arguments[:2])} took more than {seconds:g} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise RunError(f"{' '.join(arguments[:2])} ended with code {done.returncode}: {lines[-1]}")
    return done.stdout
