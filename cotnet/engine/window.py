"""The clock of the training loop: how fast the steps since the last log line went, and what they waited for."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from cotnet.engine.distributed import Ranks


class Window:
    """This rank's clock since the last log line. The figures are in the state, so that they survive a cut."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.start = self._mark = time.perf_counter()
        self.waited = 0.0
        self.laps: list[float] = []  # seconds of each step, as the host sees them

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, while counting the time that the loop waits for them."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - asked
            yield batch

    def lap(self) -> None:
        """A step is done, or on a GPU handed over: there a lap is its time only once the queue is full."""
        now = time.perf_counter()
        self.laps.append(now - self._mark)
        self._mark = now

    def figures(self, images: int, ranks: Ranks) -> dict[str, float]:
        """Speed, at `images` a step over all ranks; waiting for data, step times and memory of this rank."""
        elapsed, laps = time.perf_counter() - self.start, sorted(self.laps)
        speed = len(laps) * images / elapsed
        return {
            "images_per_second": speed,
            "images_per_second_per_device": speed / ranks.world_size,
            "data_wait": min(self.waited / elapsed, 1.0),
            "step_ms_p50": 1000 * laps[len(laps) // 2],
            "step_ms_p95": 1000 * laps[len(laps) * 95 // 100],
            "memory_gb": memory(ranks.device) / 1e9,
        }


def memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on the GPU so far, or what this process has resident now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
