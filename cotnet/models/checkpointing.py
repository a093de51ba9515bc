"""Activation checkpointing: the backward pass recomputes blocks whose activations were not saved.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). Losses and gradients stay the same to the last bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpoint_stages(model: nn.Module, stages: tuple[int, ...]) -> None:
    """Recompute the blocks of these stages (counted from 1), one block at a time; () for none.

    Raises ValueError if the model has no such stage; models of other libraries have none.
    """
    present = [child for child in model.children() if isinstance(child, Stage)]
    numbers = range(1, len(present) + 1)
    if not set(stages) <= set(numbers):
        raise ValueError(f"{type(model).__name__} has the stages {list(numbers)}, not {list(stages)}")
    for number, stage in zip(numbers, present, strict=True):
        stage.recompute = number in stages


class Stage(nn.Sequential):
    """Blocks in a row: x -> block(x, *shared) for each. The backward pass recomputes them while `recompute` is set.

    Networks call their stages as modules, so that hooks on a stage fire and FSDP can shard it.
    """

    recompute = False

    def forward(self, x: torch.Tensor, *shared: Any) -> torch.Tensor:
        for block in self:
            x = recomputed(block, x, *shared) if self.recompute else block(x, *shared)
        return x


def recomputed(block: nn.Module, *inputs: object) -> torch.Tensor:
    """`block(*inputs)`, saving only the inputs for the backward pass.

    Dropout draws the same numbers again. Batch norms update their statistics once.
    """
    extra: dict[str, Any] = {}
    if not torch.compiler.is_compiling():  # which drops the second update of the statistics by itself
        extra["context_fn"] = lambda: (nullcontext(), statistics_kept(block))
    return checkpoint(block, *inputs, use_reentrant=False, **extra)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms in here normalise as usual, but update copies of their running statistics, which are dropped."""
    norms = [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.track_running_stats]
    own = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        norm._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)
