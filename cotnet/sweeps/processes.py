"""Trials as processes of this machine, each on its share of the GPUs or cores."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from cotnet.engine.signals import end_with_parent
from cotnet.errors import INTERRUPTED, InputError
from cotnet.files import in_use
from cotnet.sweeps.ledger import State
from cotnet.sweeps.space import Trial

LOG = "log.txt"
HELD_SECONDS = 120.0  # how long a killed sweep's run may still hold its folder: it finishes a step and saves


class Share(NamedTuple):
    """What one trial may use: GPUs, named as in CUDA_VISIBLE_DEVICES, and cores."""

    gpus: tuple[str, ...]
    cores: frozenset[int]


def shares(parallel: int, gpus: Sequence[str], cores: Sequence[int]) -> list[Share]:
    """Equal shares of the GPUs, or of the cores on a machine without.

    Raises InputError if there are too few.
    """
    count, noun = (len(gpus), "GPUs are visible") if gpus else (len(cores), "cores may be used")
    if parallel > count:
        raise InputError(f"sweep.parallel={parallel} but {count} {noun}; use at most {count}")
    each = count // parallel
    parts = [slice(i * each, (i + 1) * each) for i in range(parallel)]
    return [Share(tuple(gpus[part]), frozenset(cores if gpus else cores[part])) for part in parts]


def visible_gpus() -> list[str]:
    """The names of the GPUs, as CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


class TrialProcess:
    """A running trial; its output is appended to its folder's log. It saves and ends when the sweep's process ends."""

    def __init__(self, trial: Trial, command: Sequence[str], folder: Path, share: Share) -> None:
        self.trial, self.folder, self.share, self._started = trial, folder, share, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        deadline = self._started + HELD_SECONDS
        while in_use(folder / ".lock") and time.monotonic() < deadline:  # after that the run reports it
            time.sleep(0.1)
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if share.gpus else {}
        parent = os.getpid()

        def prepare() -> None:
            end_with_parent(parent, signal.SIGTERM)
            os.sched_setaffinity(0, share.cores)

        with (folder / LOG).open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **gpus},
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which forwards it once
                preexec_fn=prepare,  # noqa: PLW1509 - this process has no other thread that could hold a lock
            )

    @property
    def seconds(self) -> float:
        """Since it started."""
        return time.monotonic() - self._started

    def last_line(self) -> str:
        """The last error line of this start's log, or its last line."""
        with (self.folder / LOG).open("rb") as log:
            log.seek(self._log_start)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or ["(no output)"])[-1][:400]


def outcome(code: int) -> State:
    """The state that an exit code means. A run that any signal killed continues from its checkpoint next time."""
    return "finished" if code == 0 else "interrupted" if code == INTERRUPTED or code < 0 else "failed"


def killed_by(code: int) -> str:
    """The signal, for a negative exit code."""
    hint = " (often because memory ran out)" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}" if code < 0 else ""
