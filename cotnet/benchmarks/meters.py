"""The time and the memory that something takes, on either device."""

import json
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    wait(device)
    return time.perf_counter()


def size(*tensors: torch.Tensor) -> int:
    """Their bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has given out for `work` at a time, beyond what was held before.

    On the CPU from the profiler's record of every allocation; what a library takes from the system behind torch's back,
    such as scratch space of a convolution, is not in it.
    """
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    found = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate((size for _, size in found), initial=0))
