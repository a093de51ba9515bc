"""Running the programs as a person does, on small image folders of real images."""

import fcntl
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cotnet.verify_resume import CLOCK, differences

ROOT = Path(__file__).resolve().parent.parent
SMALL = (  # a run of seconds: cotnet_small on a few digits
    "experiment=digits",
    "logger=none",
    "train.precision=fp32",
    "train.epochs=2",
    "train.batch_size=20",
    "train.log_every=2",
    "launch.ranks=1",
    "schedule.warmup_epochs=1",
    "loader.threads=1",
)
STEPS = 4  # optimizer steps in an epoch of it on the `digits` of conftest.py


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(program: str, *overrides: str, cwd: Path, code: int | None = 0) -> Done:
    """Run train.py or evaluate.py in `cwd`, from the command line to the exit; fail unless it exits with `code`.

    In this process (ranks, if several, in their own): what the programs import takes seconds every time. An evaluation
    draws no pictures unless `look` is given: six of them take two seconds, and test_look_program.py looks at them.
    """
    if program == "evaluate.py" and not any(override.startswith("look=") for override in overrides):
        overrides = (*overrides, "look=0")
    module = importlib.import_module(program.removesuffix(".py"))
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [program, *overrides])
        patch.setenv("WANDB_RUN_GROUP", "")  # a sweep of jobs sets it for them
        with pytest.raises(SystemExit) as end:
            module.main()
    return checked(Done(int(end.value.code or 0), out.getvalue(), err.getvalue()), code)


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}


def run_process(*command: str, cwd: Path, code: int | None = 0, **options: Any) -> Done:
    """Run `python COMMAND` as a process of its own."""
    settings: dict[str, Any] = {"cwd": cwd, "env": environment(), "capture_output": True, "text": True, "timeout": 280}
    done = subprocess.run([sys.executable, *resolved(command)], check=False, **settings, **options)
    return checked(Done(done.returncode, done.stdout, done.stderr), code)


def resolved(command: Iterable[str]) -> list[str]:
    """train.py and evaluate.py are ours, wherever the working folder is."""
    return [str(ROOT / part) if part in ("train.py", "evaluate.py") else part for part in command]


def wants_gpu(arguments: Sequence[str]) -> bool:
    """Whether pytest's arguments select tests of the GPU: `-m gpu` or `-m "gpu and ..."`."""
    return any(flag == "-m" and marks.split()[:1] == ["gpu"] for flag, marks in pairwise(arguments))


def checked(done: Done, code: int | None) -> Done:
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def once(base: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, made by the first of the test processes that asks; the others wait for it."""
    folder, mark = base / name, base / f"{name}.made"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists():
            folder.mkdir()
            make(folder)
            mark.touch()
    return folder


def start(*command: str, cwd: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `python COMMAND` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *resolved(command)],
        cwd=cwd,
        env={**environment(), **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@cache
def _all_digits() -> Path:
    """The whole digits set, made once per machine and checkout."""
    folder = ROOT / "datasets" / "digits"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / ".tests.lock").open(
        "w"
    ) as lock:  # several test processes ask at once; a second one is refused
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_process("-m", "data.prepare", "digits", "--out", str(folder), cwd=ROOT)
    return folder


def make_digits(root: Path, *, train: int, val: int) -> Path:
    """`train` and `val` images of each of the ten digits."""
    for split, count in (("train", train), ("val", val)):
        for folder in sorted((_all_digits() / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                shutil.copy(file, root / split / folder.name / file.name)
    return root


def metrics(folder: Path, *, timings: bool = False) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return records if timings else [{k: v for k, v in record.items() if k not in CLOCK} for record in records]


def checkpoint(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, averaged weights, optimizer and every logged figure are the same to the last bit."""
    assert differences(one, other) == []


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = checkpoint(one), checkpoint(other)
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        for key in a[part]:
            assert torch.equal(a[part][key], b[part][key]), f"{part}: {key} differs"
    assert str(a["optimizer"]) == str(b["optimizer"])
