"""The clock of the training loop."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from cotnet.engine.distributed import Ranks


class StepTimer:
    """Times this rank's steps since the last log line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.start = self._step_start = time.perf_counter()
        self.waited = 0.0
        self.step_seconds: list[float] = []  # as the host sees them

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches; counts the time that the loop waits for them."""
        asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def step_done(self) -> None:
        """Records the host's step time. On a GPU it equals the step's own time only once the queue is full."""
        now = time.perf_counter()
        self.step_seconds.append(now - self._step_start)
        self._step_start = now

    def figures(self, images: int, ranks: Ranks) -> dict[str, float]:
        """Speed over all ranks, for `images` per step of all ranks; data wait, step times and memory of this rank."""
        elapsed, seconds = time.perf_counter() - self.start, sorted(self.step_seconds)
        speed = len(seconds) * images / elapsed
        return {
            "images_per_second": speed,
            "images_per_second_per_device": speed / ranks.world_size,
            "data_wait": min(self.waited / elapsed, 1.0),
            "step_ms_p50": 1000 * seconds[len(seconds) // 2],
            "step_ms_p95": 1000 * seconds[len(seconds) * 95 // 100],
            "memory_gb": memory(ranks.device) / 1e9,
        }


def memory(device: torch.device) -> int:
    """Bytes: peak allocation on a GPU, or the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
