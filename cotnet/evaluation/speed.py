"""What a model costs: parameters, multiply-adds, latency, memory."""

import copy
import resource
import time
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from cotnet.engine.precision import Precision
from cotnet.models.table import count_multiply_adds, count_parameters

_WARM_UP: Final = 3
_RUNS: Final = 40
_SECONDS: Final = 2.0  # of measuring, at most


@torch.inference_mode()
def latency(model: nn.Module, precision: Precision, side: int) -> dict[str, float]:
    """Median and 95th percentile of the milliseconds for one image, from input on the device to logits."""
    image = torch.zeros(1, 3, side, side, device=precision.device, dtype=precision.parameters)
    image = image.to(memory_format=precision.layout)
    seconds: list[float] = []
    for run in range(_WARM_UP + _RUNS):
        started = time.perf_counter()
        with precision.autocast():
            model(image)
        if precision.device.type == "cuda":
            torch.cuda.synchronize(precision.device)
        if run >= _WARM_UP:
            seconds.append(time.perf_counter() - started)
            if sum(seconds) > _SECONDS:
                break
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"latency_ms_p50": 1000 * float(p50), "latency_ms_p95": 1000 * float(p95)}


def cost(model: nn.Module, side: int) -> dict[str, Any]:
    """Parameters, and multiply-adds of one image; counted without computing."""
    shapes = copy.deepcopy(model).to("meta")
    return {"parameters": count_parameters(shapes), "multiply_adds": count_multiply_adds(shapes, side)}


def peak_memory_mib(device: torch.device) -> float:
    """The largest memory so far: on a GPU what torch allocated there, else this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
