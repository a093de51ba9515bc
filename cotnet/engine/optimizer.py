"""What the optimizer sees of a backbone, and the moving average of its weights."""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with weight decay; biases and norms (1-d parameters) without."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class MovingAverage:
    """Exponential moving average of weights and buffers; `module` is the averaged model.

    The decay at update t is min(decay, (1 + t) / (10 + t)), so that short runs do not average in the initial weights.
    (torch's AveragedModel keeps its counter on the device, where reading it would stall every step.)

    Raises:
        ValueError: `decay` is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay={decay:g} must be at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(model).requires_grad_(requires_grad=False)
        self._averaged, self._averaged_counts = _tensors(self.module)
        self._current, self._current_counts = _tensors(model)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights."""
        rate = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged, self._current, 1 - rate)
        if self._current_counts:
            torch._foreach_copy_(self._averaged_counts, self._current_counts)
        self.updates += 1


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and buffers that are averaged, and the counters that are copied."""
    tensors = [t.detach() for t in itertools.chain(model.parameters(), model.buffers())]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
