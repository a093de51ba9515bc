"""Cuts real runs at every kind of moment and compares each with an uncut run:

python -m cotnet.verify_resume [--cuts N] [--ranks 1,2,3,4] [--seed N] [--folder DIR] [OVERRIDE ...]

Moments: during start-up, before a process's first log line, between two steps, while a checkpoint is written, and
during an evaluation. Cuts: SIGTERM, Ctrl-C for the whole group, kill -9 of the parent alone and of the whole group.
Weights, averaged weights, optimizer, progress and every logged figure but those of the clock must be the same to the
last bit, and no process may be left 10 seconds after a cut; otherwise the exit code is 1.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from cotnet import records
from cotnet.engine import state as checkpoints
from cotnet.errors import InputError, RunError
from cotnet.reporting.terminal import say
from data.prepare.small_sets import subset

PROGRAM = Path(__file__).resolve().parent.parent / "train.py"
DIGITS = PROGRAM.parent / "datasets" / "digits"
CLOCK = (  # figures of a training record that depend on the machine
    *("train/images_per_second", "train/images_per_second_per_device", "train/data_wait"),
    *("train/step_ms_p50", "train/step_ms_p95", "train/memory_gb"),
)
OWN = ("run_id", "seconds", "train_seconds", "trained_images")  # progress that depends on the machine
# Everything random at once: RandAugment, mixup, dropout, drop path; also accumulation and EMA. The batch divides over
# 1 to 4 ranks, and some checkpoints come before a log line.
RUN = (
    *("experiment=digits", "logger=none", "train.batch_size=48", "train.accumulation=2"),
    *("augmentation=cotnet", "augmentation.flip=0", "backbone.drop_path=0.1", "backbone.dropout=0.1"),
    *("train.log_every=3", "checkpoint.every_steps=2"),
)
SHARE: Final = 0.25  # of the digits, so that an epoch has seven steps
GONE_SECONDS: Final = 10.0  # in which every process of a run that was cut must have ended
STUCK_SECONDS: Final = 300.0  # a run that gets no further in this time is a failure


# --- comparing ----------------------------------------------------------------------------------------------------


def differences(one: Path, other: Path) -> list[str]:
    """The differences between the runs in two folders, a line each; an empty list for the same run."""
    found = []
    for name in ("last.pt", "best.pt"):
        ours, theirs = (_parts(folder / "checkpoints" / name) for folder in (one, other))
        keys = sorted(ours.keys() | theirs.keys())
        found += [f"{name}: {key}" for key in keys if not _same(ours.get(key), theirs.get(key))]
    a, b = figures(one), figures(other)
    if len(a) != len(b):
        found.append(f"metrics.jsonl: {len(a)} records and {len(b)}")
    return found + [f"metrics.jsonl: step {row['step']}" for row, twin in zip(a, b, strict=False) if row != twin]


def figures(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without figures that depend on the machine."""
    rows = records.read(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def _parts(path: Path) -> dict[str, Any]:
    checkpoint = checkpoints.load(path)
    progress = {key: value for key, value in checkpoint["progress"].items() if key not in OWN}
    names = ("model", "ema", "ema_updates", "optimizer", "scaler", "ranks")
    return dict(_leaves({name: checkpoint[name] for name in names} | {"progress": progress}))


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) or (isinstance(tree, list | tuple) and tree):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


# --- cutting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A run as seen from its folder."""

    folder: Path

    def rows(self) -> list[dict[str, Any]]:
        log = self.folder / "metrics.jsonl"
        return records.read(log) if log.exists() else []

    def step(self) -> int:
        """The last logged step, 0 without one."""
        rows = self.rows()
        return int(rows[-1]["step"]) if rows else 0

    def started(self) -> int:
        """How often a process has taken the run up."""
        log = self.folder / "environment.jsonl"
        return len(records.read(log)) if log.exists() else 0

    def saved(self) -> int:
        """When last.pt was written, in nanoseconds; 0 without one."""
        last = self.folder / "checkpoints" / "last.pt"
        return last.stat().st_mtime_ns if last.exists() else 0

    def saving(self) -> bool:
        return (self.folder / "checkpoints" / ".last.pt.tmp").exists()

    def evaluating(self) -> bool:
        """Whether the last record is of the last steps of an epoch, whose evaluation then runs."""
        rows = self.rows()
        return bool(rows) and "train/loss" in rows[-1] and rows[-1]["epoch"] == int(rows[-1]["epoch"])


def moments(run: Observed, chance: random.Random) -> dict[str, Callable[[], bool]]:
    """For each kind of moment, a function that says whether it has come since now."""
    began, started, rows, saved = time.monotonic(), run.started(), run.rows(), run.saved()
    wait = chance.uniform(0.5, 7)

    def up() -> bool:
        return run.started() > started

    return {
        "start-up": lambda: time.monotonic() - began > wait,
        "first line": lambda: up() and (run.saved() != saved or run.rows() != rows),
        "step": lambda: up() and len(run.rows()) > len(rows),
        "saving": lambda: up() and run.saving(),
        "evaluation": lambda: up() and run.evaluating(),
    }


CUTS: Final[dict[str, tuple[signal.Signals, bool]]] = {  # the signal, and whether the whole group gets it
    "SIGTERM": (signal.SIGTERM, False),
    "kill -9, parent": (signal.SIGKILL, False),
    "Ctrl-C": (signal.SIGINT, True),
    "kill -9, group": (signal.SIGKILL, True),
}
ENDED: Final = (0, 75, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)  # exit codes, also before handlers exist


def cut(command: Sequence[str], run: Observed, moment: str, how: str, chance: random.Random) -> tuple[int, float]:
    """Starts the run and cuts it at the moment. Returns its exit code (0: it had finished) and the seconds until all
    its processes were gone.

    Raises:
        RunError: it failed by itself, got stuck, or left a process behind.
    """
    errors = run.folder.with_suffix(".err")
    is_time, deadline = moments(run, chance)[moment], time.monotonic() + STUCK_SECONDS
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
    while process.poll() is None and not is_time():
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise RunError(f"no {moment} within {STUCK_SECONDS:.0f} s at step {run.step()}")
        time.sleep(0.004)
    time.sleep(chance.uniform(0, 0.05) if moment in ("saving", "first line") else chance.uniform(0, 0.2))
    number, whole_group = CUTS[how]
    sent = time.monotonic()
    if process.poll() is None:
        (os.killpg if whole_group else os.kill)(process.pid, number)
    code = process.wait()
    died = time.monotonic()
    while left := members(process.pid):
        if time.monotonic() - died > GONE_SECONDS:
            os.killpg(process.pid, signal.SIGKILL)
            raise RunError(f"{how} during {moment}: processes {left} outlived the run by {GONE_SECONDS:.0f} s")
        time.sleep(0.02)
    if code not in ENDED:
        raise RunError(f"the run ended with code {code}: {errors.read_text().strip().splitlines()[-1:]}")
    return code, time.monotonic() - sent


def members(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(pgrp) == group and state != "Z":
                found.append(int(entry.name))
    return found


def cut_all_the_way(command: list[str], folder: Path, cuts: int, chance: random.Random, table: Table) -> None:
    """Cuts a run `cuts` times, with moments and signals in turn; a table row for each.

    Raises:
        RunError: it was too short to be cut so often.
    """
    run, ranks = Observed(folder=folder), command[-1].rpartition("=")[2]
    ways = itertools.cycle(CUTS)
    kinds = ["start-up", "first line", "step", "saving", "evaluation"]
    for index in range(cuts):
        moment, how = kinds[index % len(kinds)], next(ways)
        code, seconds = cut(command, run, moment, how, chance)
        if code == 0:
            raise RunError(f"the run ended after {index} of {cuts} cuts; lengthen it with train.epochs=N")
        table.add_row(ranks, str(index + 1), moment, how, str(run.step()), str(code), f"{seconds:.1f}")
        say(f"{ranks} ranks, cut {index + 1}/{cuts}: {how} during {moment}, step {run.step()}")


def verify(folder: Path, overrides: Sequence[str], cuts: int, chance: random.Random, table: Table) -> list[str]:
    """Runs once without and once with cuts; returns the differences.

    Raises:
        RunError: a run failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole, in_parts = folder / "uncut", folder / "cut"
    for path in (whole, in_parts):
        shutil.rmtree(path, ignore_errors=True)
    base = [sys.executable, str(PROGRAM)]
    if subprocess.run([*base, f"output_dir={whole}", *overrides], check=False).returncode:
        raise RunError("the run that is not cut failed; see above")
    command = [*base, f"output_dir={in_parts}", *overrides]
    cut_all_the_way(command, in_parts, cuts, chance, table)
    if subprocess.run(command, check=False).returncode:
        raise RunError("the run that was cut did not finish; see above")
    return differences(whole, in_parts)


def verify_all(given: argparse.Namespace) -> int:
    """Each rank count in turn; the exit code."""
    chance, found = random.Random(given.seed), []
    images = given.folder / "digits.csv"
    say(subset(DIGITS, images, classes=None, share=SHARE))
    columns = ("ranks", "cut", "during", "by", "at step", "exit code", "s to end")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for index, ranks in enumerate(given.ranks):
        cuts = given.cuts // len(given.ranks) + (index < given.cuts % len(given.ranks))
        epochs = f"train.epochs={cuts // 4 + 3}"  # a cut during an evaluation costs an epoch
        overrides = [*RUN, f"data.root={images}", epochs, *given.overrides, f"launch.ranks={ranks}"]
        say(f"a run of: {' '.join(overrides)}")
        lines = verify(given.folder / f"{ranks}-ranks", overrides, cuts, chance, table)
        found += [f"{ranks} ranks: {line}" for line in lines]
    Console(highlight=False).print(table)
    for line in found[:20]:
        say(f"differs: {line}")
    same = f"after {given.cuts} cuts on {given.ranks} ranks: 0 differences, no process left"
    say(f"{len(found)} differences" if found else same)
    return int(bool(found))


def _ranks(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cotnet.verify_resume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=20, help="in all, over the rank counts (%(default)s)")
    parser.add_argument("--ranks", type=_ranks, default=[1, 2, 3, 4], help="rank counts in turn (1,2,3,4)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the cuts (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/verify_resume"))
    parser.add_argument("overrides", nargs="*", help=f"of train.py, after {' '.join(RUN)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy machine can be 20 times slower
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    try:
        return verify_all(parser.parse_args())
    except (InputError, RunError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
