"""Proves or refutes every claim that is made for GPUs, in about ten minutes on one: `make gpu-check`, or

python -m cotnet.gpu_check [--stages NAME ...] [--json FILE]

A stage that fails does not stop the others. Exit code 0: every claim holds; 1: one does not; 2: there is no GPU, and
what a CPU can check in small holds. Nothing is installed; files go to a temporary folder, results to the JSON file.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from cotnet.benchmarks.common import first_device, output_file
from cotnet.engine.determinism import set_variables
from cotnet.errors import FAILED, WRONG_INPUT, InputError, RunError
from cotnet.files import write_text
from cotnet.gpu_check import augmentation, detection, exactness, images, machine, speed
from cotnet.gpu_check.stage import Bench, Claim, Stage
from cotnet.reporting import environment
from cotnet.reporting.terminal import say

STAGES: Final[dict[str, Stage]] = {  # in order of value
    "environment": machine.environment,
    "tests": machine.gpu_tests,
    "resume": exactness.resume,
    "repeats": exactness.repeated_steps,
    "gradients": exactness.gradient_errors,
    "operator": speed.operator,
    "nets": speed.nets,
    "augmentation": augmentation.augmentation,
    "loading": images.loading,
    "decoding": images.decoding,
    "synchronisation": exactness.synchronisation,
    "memory": images.memory,
    "detection": detection.detection,
}
VERDICTS: Final = {True: "PASS", False: "FAIL", None: "----"}


def findings(stage: Stage, bench: Bench) -> Iterator[Claim]:
    """What a stage finds. If it ends with an error, the last finding is that error."""
    try:
        yield from stage(bench)
    except Exception as error:
        if not isinstance(error, InputError | RunError):
            traceback.print_exc()
        what = next(iter(str(error).splitlines()), "")
        yield Claim("the stage runs to its end", f"{type(error).__name__}: {what}", passed=False)


def check(stages: Sequence[str], bench: Bench, file: Path) -> list[dict[str, Any]]:
    """Runs the stages, prints a line for each finding and writes them all after each stage."""
    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for name in stages:
        started = time.monotonic()
        for finding in findings(STAGES[name], bench):
            small = "" if bench.gpu else " (in small, on a CPU)"
            say(f"{VERDICTS[finding.passed]}  {name}: {finding.claim}{small}: {finding.figure}")
            rows.append({"stage": name, **finding._asdict()})
        seconds[name] = round(time.monotonic() - started, 1)
        say(f"      {name}: {seconds[name]:.0f} s")
        found = {"machine": environment.machine(), "gpu": bench.gpu, "seconds": seconds, "findings": rows}
        write_text(file, json.dumps(found, indent=1) + "\n")
    return rows


def last_line(rows: Sequence[dict[str, Any]], *, gpu: bool, file: Path) -> tuple[str, int]:
    """The verdict for a person, and the exit code."""
    failed = [row for row in rows if row["passed"] is False]
    open_stages = list(dict.fromkeys(row["stage"] for row in rows if row["passed"] is None))
    passed = sum(row["passed"] is True for row in rows)
    line = f"{passed} of {len(rows)} claims hold, {len(failed)} do not; {file}"
    if not gpu:
        line = f"no GPU: {line}; not checked on a GPU: everything, and not at all: {', '.join(open_stages) or 'none'}"
    elif open_stages:
        line = f"{line}; not checked: {', '.join(open_stages)}"
    return line, FAILED if failed else 0 if gpu else WRONG_INPUT


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cotnet.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME", help="all")
    parser.add_argument("--json", type=output_file, default=Path("outputs/gpu_check.json"), help="%(default)s")
    given = parser.parse_args(arguments)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    # As train.py does, before the first CUDA call: what is checked is what runs by default.
    if line := set_variables(deterministic=True, gpu=torch.cuda.is_available()):
        say(line)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device=first_device(), folder=Path(folder))
        rows = check(given.stages, bench, given.json)
    line, code = last_line(rows, gpu=bench.gpu, file=given.json)
    say(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
