"""Trials as processes of their own, side by side, each on its share of the machine."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cotnet.engine.signals import end_with_parent
from cotnet.errors import INTERRUPTED, InputError
from cotnet.sweeps.ledger import State, in_use

LOG = "log.txt"
HELD_SECONDS = 120.0  # a run may still hold its folder after its sweep was killed: it finishes a step and saves


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one trial may use: names of GPUs as CUDA_VISIBLE_DEVICES has them, or cores."""

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
    return [Share(gpus=tuple(gpus[part]), cores=frozenset(cores if gpus else cores[part])) for part in parts]


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


class Process:
    """A trial that runs; its output is appended to its folder's log. A killed sweep's trials save and end."""

    def __init__(self, command: Sequence[str], folder: Path, share: Share) -> None:
        self.folder, self.share, self.started = folder, share, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        _wait_until_free(folder)
        environment = dict(os.environ)
        if share.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
        parent = os.getpid()

        def prepare() -> None:
            end_with_parent(parent, signal.SIGTERM)
            os.sched_setaffinity(0, share.cores)

        self._log_start = (folder / LOG).stat().st_size if (folder / LOG).exists() else 0
        with (folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which hands it on once
                preexec_fn=prepare,  # noqa: PLW1509 - this process has no other thread that could hold a lock
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """What the log says last since this start: its error line where it has one."""
        with (self.folder / LOG).open("rb") as log:
            log.seek(self._log_start)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or ["(no output)"])[-1][:400]


def outcome(code: int) -> State:
    """What an exit code means. A run that was killed, by whomever, continues from its checkpoint next time."""
    return "finished" if code == 0 else "interrupted" if code == INTERRUPTED or code < 0 else "failed"


def _wait_until_free(folder: Path) -> None:
    """A killed sweep's run may still be saving; one that lasts is somebody else's, which the run itself will say."""
    deadline = time.monotonic() + HELD_SECONDS
    while in_use(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
