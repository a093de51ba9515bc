"""The time and the memory that something takes, on either device; several things in turn; a bare training step."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cotnet.engine.precision import Precision

T = TypeVar("T")


def first_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def now(device: torch.device) -> float:
    """Seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(task: Callable[[], object], device: torch.device) -> float:
    """How long a call takes."""
    started = now(device)
    task()
    return now(device) - started


def in_turns(tasks: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each task returns in `rounds` rounds after one to warm up.

    Tasks take turns, in another order each round, so that all meet the same state of the machine.
    """
    found: dict[str, list[T]] = {name: [] for name in tasks}
    names = list(tasks)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            progress(f"round {turn} of {rounds}: {name}")
            result = tasks[name]()
            if turn:
                found[name].append(result)
    return found


def progress(line: str) -> None:
    """Show a line on a terminal, in place of the one before."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def bare_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    *,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> None:
    """Forward, loss, backward and the optimizer's step, and nothing else."""
    with precision.autocast():
        logits = model(images)
    scaler.scale(criterion(logits.to(images.dtype), targets)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def peak_bytes(device: torch.device, task: Callable[[], object]) -> int:
    """The most bytes that torch's allocator holds at a time during `task`, beyond those held before.

    On the CPU this sums the profiler's record of every allocation. Memory that a library takes from the system itself,
    such as scratch space of a convolution, is not counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        task()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        task()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    found = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate((size for _, size in found), initial=0))
