"""How long one image takes in PyTorch, eager and compiled, and in exported files."""

import time
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP: Final = 3
RUNS: Final = 30
SECONDS: Final = 3.0  # of measuring, at most


@torch.inference_mode()
def milliseconds(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Median and 95th percentile of the time of a call, in milliseconds, on the CPU."""
    taken: list[float] = []
    for run in range(WARM_UP + RUNS):
        started = time.perf_counter()
        model(images)
        if run >= WARM_UP:
            taken.append(time.perf_counter() - started)
            if sum(taken) > SECONDS:
                break
    median, slow = 1000 * np.percentile(taken, [50, 95])
    return float(median), float(slow)


def table(models: Mapping[str, nn.Module], images: Tensor) -> list[str]:
    """Lines of a table: a row for each model by its name, the first one is what the others are compared with."""
    found = {name: milliseconds(model, images) for name, model in models.items()}
    first = next(iter(found.values()))[0]
    rows = [f"{name:<24} {median:>9.3f} {slow:>9.3f} {first / median:>8.2f}x" for name, (median, slow) in found.items()]
    return [f"{'milliseconds per call':<24} {'median':>9} {'95 %':>9} {'speed':>9}", *rows]
