"""Cuts real runs at every kind of moment and compares each with an uncut run:

python -m cotnet.verify_resume [--cuts N] [--ranks 1,2,3,4] [--task TASK] [--seed N] [--folder DIR] [OVERRIDE ...]

Moments: during start-up, before a process's first log line, between two steps, while a checkpoint is written, and
during an evaluation. Cuts: SIGTERM, Ctrl-C for the whole group, kill -9 of the parent alone and of the whole group.
Weights, averaged weights, optimizer, progress and every logged figure but those of the clock must be the same to the
last bit, and no process may be left 10 seconds after a cut; otherwise the exit code is 1.
"""

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cotnet import records
from cotnet.engine import checkpoints
from cotnet.errors import InputError, RunError
from cotnet.integrity import checksum, leaves
from cotnet.reporting.terminal import say
from data.prepare.commands import positive
from data.prepare.shapes import shapes
from data.prepare.small_sets import subset

PROGRAM = Path(__file__).resolve().parent.parent / "train.py"
DIGITS = PROGRAM.parent / "datasets" / "digits"
CLOCK = (  # figures of a training record that depend on the machine
    *("train/images_per_second", "train/images_per_second_per_device", "train/data_wait"),
    *("train/step_ms_p50", "train/step_ms_p95", "train/memory_gb"),
)
OWN = tuple(f"progress.{name}" for name in ("run_id", "seconds", "train_seconds", "trained_images"))  # of the machine
# Everything random at once: RandAugment, mixup, dropout, drop path; also accumulation and EMA. The batch divides over
# 1 to 4 ranks, and some checkpoints come before a log line.
RUN = (
    *("experiment=digits", "logger=none", "train.batch_size=48", "train.accumulation=2"),
    *("augmentation=cotnet", "augmentation.flip=0", "backbone.drop_path=0.1", "backbone.dropout=0.1"),
    *("train.log_every=3", "checkpoint.every_steps=2"),
)
# The same of detectors and segmenters on drawn shapes: 120 images are five steps an epoch.
DENSE = (
    *("logger=none", "train.batch_size=24", "train.accumulation=2", "backbone.width=8", "backbone.drop_path=0.1"),
    *("task.channels=8", "augmentation.jitter=[0.7,1.3]", "train.ema_decay=0.99", "train.log_every=3"),
    *("checkpoint.every_steps=2", "loader.threads=1", "schedule.warmup_epochs=0.5", "evaluation.every=1"),
)
RUNS: Final = {
    "classification": RUN,
    "detection": ("experiment=shapes", *DENSE, "task.rois=8"),
    "segmentation": ("experiment=shapes_segmentation", *DENSE),
}
SHARE: Final = 0.25  # of the digits, so that an epoch has seven steps
GONE_SECONDS: Final = 10.0  # in which every process of a run that was cut must have ended
STUCK_SECONDS: Final = 300.0  # a run that gets no further in this time is a failure


def differences(one: Path, other: Path) -> list[str]:
    """The differences between the runs in two folders, a line each; an empty list for the same run."""
    found = []
    for name in ("last.pt", "best.pt"):
        ours, theirs = (_checksums(folder / "checkpoints" / name) for folder in (one, other))
        found += [f"{name}: {key}" for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    a, b = figures(one), figures(other)
    if len(a) != len(b):
        found.append(f"metrics.jsonl: {len(a)} records and {len(b)}")
    return found + [f"metrics.jsonl: step {row['step']}" for row, twin in zip(a, b, strict=False) if row != twin]


def figures(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without figures that depend on the machine."""
    rows = records.read(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def _checksums(path: Path) -> dict[str, str]:
    """Of every tensor and number in a checkpoint, by its name, but for what depends on the machine."""
    checkpoint = checkpoints.load(path)
    compared = ("model", "ema", "ema_updates", "optimizer", "scaler", "ranks", "progress")
    found = leaves({part: checkpoint[part] for part in compared})
    named = {name.replace("'", "")[1:]: checksum(leaf) for name, leaf in found}
    return {name: value for name, value in named.items() if name not in OWN}


class Seen(NamedTuple):
    """A run as seen from its folder."""

    starts: int  # how often a process has taken it up
    rows: list[dict[str, Any]]  # of metrics.jsonl
    saved: int  # when last.pt was written, in nanoseconds; 0 without one
    saving: bool

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def evaluating(self) -> bool:
        """Whether the last record is of the last steps of an epoch, whose evaluation then runs."""
        return bool(self.rows) and "train/loss" in self.rows[-1] and self.rows[-1]["epoch"] % 1 == 0


def look(folder: Path) -> Seen:
    """The run in this folder, now."""
    starts, rows = (records.read_existing(folder / name) for name in ("environment.jsonl", "metrics.jsonl"))
    last = folder / "checkpoints" / "last.pt"
    saved = last.stat().st_mtime_ns if last.exists() else 0
    return Seen(len(starts), rows, saved, last.with_name(".last.pt.tmp").exists())


# Whether a moment has come once a process has taken the run up, from the run before it and now.
MOMENTS: Final[dict[str, Callable[[Seen, Seen], bool]]] = {
    "first line": lambda before, now: now.saved != before.saved or now.rows != before.rows,
    "step": lambda before, now: len(now.rows) > len(before.rows),
    "saving": lambda _, now: now.saving,
    "evaluation": lambda _, now: now.evaluating,
}
CUTS: Final[dict[str, tuple[signal.Signals, bool]]] = {  # the signal, and whether the whole group gets it
    "SIGTERM": (signal.SIGTERM, False),
    "kill -9, parent": (signal.SIGKILL, False),
    "Ctrl-C": (signal.SIGINT, True),
    "kill -9, group": (signal.SIGKILL, True),
}
ENDED: Final = (0, 75, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)  # exit codes, also before handlers exist


def cut(command: Sequence[str], folder: Path, moment: str, how: str, chance: random.Random) -> tuple[int, float]:
    """Starts the run and cuts it at the moment. Returns its exit code (0: it had finished) and the seconds until all
    its processes were gone. Raises RunError if it failed by itself, got stuck, or left a process behind."""
    errors, before, began, wait = folder.with_suffix(".err"), look(folder), time.monotonic(), chance.uniform(0.5, 7)

    def has_come() -> bool:
        if moment == "start-up":
            return time.monotonic() - began > wait
        now = look(folder)
        return now.starts > before.starts and MOMENTS[moment](before, now)

    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
    while process.poll() is None and not has_come():
        if time.monotonic() - began > STUCK_SECONDS:
            os.killpg(process.pid, signal.SIGKILL)
            raise RunError(f"no {moment} within {STUCK_SECONDS:.0f} s at step {look(folder).step}")
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
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def verify(folder: Path, overrides: Sequence[str], cuts: int, chance: random.Random) -> list[str]:
    """Runs once uncut and once cut `cuts` times, with moments and signals in turn; returns the differences. Raises
    RunError if a run failed, or was too short to be cut so often."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, in_parts = folder / "uncut", folder / "cut"
    for path in (whole, in_parts):
        shutil.rmtree(path, ignore_errors=True)
    base = [sys.executable, str(PROGRAM), *overrides]
    if subprocess.run([*base, f"output_dir={whole}"], check=False).returncode:
        raise RunError("the run that is not cut failed; see above")
    command = [*base, f"output_dir={in_parts}"]
    moments = itertools.cycle(["start-up", *MOMENTS])
    for index, moment, how in zip(range(cuts), moments, itertools.cycle(CUTS), strict=False):
        code, seconds = cut(command, in_parts, moment, how, chance)
        if code == 0:
            raise RunError(f"the run ended after {index} of {cuts} cuts; lengthen it with train.epochs=N")
        where = f"{folder.name}, cut {index + 1}/{cuts}: {how} during {moment}, step {look(in_parts).step}"
        say(f"{where}: exit code {code}, all processes gone after {seconds:.1f} s")
    if subprocess.run(command, check=False).returncode:
        raise RunError("the run that was cut did not finish; see above")
    return differences(whole, in_parts)


def verify_all(given: argparse.Namespace) -> int:
    """Each rank count in turn; the exit code."""
    chance, found, images = random.Random(given.seed), [], images_of(given)
    for index, ranks in enumerate(given.ranks):
        cuts = given.cuts // len(given.ranks) + (index < given.cuts % len(given.ranks))
        epochs = f"train.epochs={cuts // 4 + 3}"  # a cut during an evaluation costs an epoch
        overrides = [*RUNS[given.task], f"data.root={images}", epochs, *given.overrides, f"launch.ranks={ranks}"]
        say(f"a run of: {' '.join(overrides)}")
        lines = verify(given.folder / f"{ranks}-ranks", overrides, cuts, chance)
        found += [f"{ranks} ranks: {line}" for line in lines]
    for line in found[:20]:
        say(f"differs: {line}")
    same = f"after {given.cuts} cuts on {given.ranks} ranks: 0 differences, no process left"
    say(f"{len(found)} differences" if found else same)
    return int(bool(found))


def images_of(given: argparse.Namespace) -> Path:
    """The images of the runs, made if they are not there."""
    if given.task == "classification":
        images = given.folder / "digits.csv"
        say(subset(DIGITS, images, classes=None, share=SHARE))
        return images
    drawn = given.folder / "shapes"
    say(shapes(drawn, images=120, val=12, size=64))
    return drawn / {"detection": "coco", "segmentation": "ade"}[given.task]


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cotnet.verify_resume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=20, help="in all, over the rank counts (%(default)s)")
    ranks = "rank counts in turn (1,2,3,4)"
    parser.add_argument(
        "--ranks", type=lambda text: [*map(positive, text.split(","))], default=[1, 2, 3, 4], help=ranks
    )
    parser.add_argument("--task", choices=RUNS, default="classification", help="of the run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the cuts (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/verify_resume"))
    parser.add_argument("overrides", nargs="*", help=f"of train.py, after {' '.join(RUN)}, or those of the task")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy machine can be 20 times slower
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    try:
        return verify_all(parser.parse_args())
    except (InputError, RunError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
