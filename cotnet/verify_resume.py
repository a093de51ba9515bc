"""Cut a real run at random points and compare it with one never cut:

python -m cotnet.verify_resume [--cuts N] [--seed N] [--folder DIR] [OVERRIDE ...]

SIGTERM (a stop that saves) and kill -9 (continues from the last checkpoint) take turns. Weights, averaged weights,
optimizer, progress and every logged figure but those of the clock must be the same to the last bit; exit code 1 if not.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from cotnet.engine import records
from cotnet.engine import state as checkpoints
from cotnet.engine.terminal import say
from cotnet.errors import InputError, RunError

PROGRAM = Path(__file__).resolve().parent.parent / "train.py"
CLOCK = (  # figures of a training record that depend on the machine
    *("train/images_per_second", "train/images_per_second_per_device", "train/data_wait"),
    *("train/step_ms_p50", "train/step_ms_p95", "train/memory_gb"),
)
OWN = ("run_id", "seconds", "train_seconds", "trained_images")  # progress that is not part of the result
# Every random thing at once: two ranks, accumulation, RandAugment, mixup, dropout, drop path, EMA.
RUN = (
    *("experiment=digits", "logger=none", "launch.ranks=2", "train.epochs=4", "train.accumulation=2"),
    *("augmentation=cotnet", "augmentation.flip=0", "backbone.drop_path=0.1", "backbone.dropout=0.1"),
    *("train.log_every=1", "checkpoint.every_steps=3"),
)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the runs in two folders, a line each; an empty list for the same run."""
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
    """The records of metrics.jsonl without what depends on the clock and the machine."""
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


def cut(command: Sequence[str], folder: Path, number: signal.Signals, step: int, delay: float) -> tuple[int, float]:
    """Start the run and send the signal `delay` seconds after its first record at or past `step`; its exit code (0: it
    was done before) and the seconds it took to end.

    Raises:
        RunError: it failed by itself.
    """
    log, errors = folder / "metrics.jsonl", folder.with_suffix(".err")
    before = log.stat().st_mtime if log.exists() else 0.0
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
    while process.poll() is None and not (log.exists() and log.stat().st_mtime > before and last_step(log) >= step):
        time.sleep(0.02)
    time.sleep(delay)
    sent = time.monotonic()
    if process.poll() is None:
        process.send_signal(number)
    code = process.wait()
    deadline = time.monotonic() + 30
    while (
        _group_lives(process.pid) and time.monotonic() < deadline
    ):  # the ranks of a parent that was killed finish their step and save
        time.sleep(0.02)
    if code not in (0, 75, -signal.SIGKILL):
        raise RunError(f"the run ended with code {code}: {errors.read_text().strip().splitlines()[-1:]}")
    return code, time.monotonic() - sent


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def last_step(log: Path) -> int:
    """The last step in metrics.jsonl, 0 without one."""
    rows = records.read(log) if log.exists() else []
    return int(rows[-1]["step"]) if rows else 0


def cut_all_the_way(command: list[str], folder: Path, cuts: int, steps: int, chance: random.Random) -> Table:
    """Cut a run of `steps` steps `cuts` times on its way, then let it finish; the table of what happened.

    Raises:
        RunError: it was too fast to be cut so often.
    """
    table = Table("cut", "signal", "at step", "exit code", "seconds to end", box=box.SIMPLE_HEAD)
    for index, wanted in enumerate(sorted(chance.choices(range(steps * 9 // 10), k=cuts))):
        number = (signal.SIGTERM, signal.SIGKILL)[index % 2]
        code, seconds = cut(command, folder, number, wanted, chance.uniform(0, 0.2))
        if code == 0:
            raise RunError(f"the run ended after {index} of {cuts} cuts; lengthen it with train.epochs=N")
        step = last_step(folder / "metrics.jsonl")
        table.add_row(str(index + 1), number.name, str(step), str(code), f"{seconds:.1f}")
        say(f"cut {index + 1}/{cuts}: {number.name} at step {step} of {steps}")
    return table


def verify(folder: Path, overrides: Sequence[str], cuts: int, seed: int) -> int:
    """Run, cut, compare, print; the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: folder / name for name in ("uncut", "cut")}
    for path in names.values():
        shutil.rmtree(path, ignore_errors=True)
    base = [sys.executable, str(PROGRAM), *overrides]
    say(f"a run of: {' '.join(overrides)}")
    if subprocess.run([*base, f"output_dir={names['uncut']}"], check=False).returncode:
        raise RunError("the run that is not cut failed; see above")
    steps = last_step(names["uncut"] / "metrics.jsonl")
    again = [*base, f"output_dir={names['cut']}"]
    table = cut_all_the_way(again, names["cut"], cuts, steps, random.Random(seed))
    if subprocess.run(again, check=False).returncode:
        raise RunError("the run that was cut did not finish; see above")
    Console(highlight=False).print(table)
    found = differences(names["uncut"], names["cut"])
    for line in found[:20]:
        say(f"differs: {line}")
    say(f"{len(found)} differences" if found else f"after {cuts} cuts in {steps} steps: the same run to the last bit")
    return int(bool(found))


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.verify_resume", description=__doc__)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the points where it is cut")
    parser.add_argument("--folder", type=Path, default=Path("outputs/verify_resume"))
    parser.add_argument("overrides", nargs="*", help=f"of train.py, after {' '.join(RUN)}")
    given = parser.parse_args()
    try:
        return verify(given.folder, [*RUN, *given.overrides], given.cuts, given.seed)
    except (InputError, RunError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
