"""Histograms of gradients, under the names by which `wandb.watch` logs them: `gradients/PARAMETER`.

`wandb.watch` adds hooks to the parameters, from the thread that opened the run. Here the training loop hands over what
the optimizer has just used: averaged over ranks, unscaled and clipped.
"""

from typing import Any, Final

import numpy as np
from torch import nn

BINS: Final = 64
PREFIX: Final = "gradients/"


def copied(model: nn.Module) -> dict[str, np.ndarray]:
    """The gradients of a model's parameters, by name, in memory of their own on the CPU."""
    with_gradients = ((name, one.grad) for name, one in model.named_parameters() if one.grad is not None)
    return {f"{PREFIX}{name}": np.array(grad.detach().float().cpu().numpy()) for name, grad in with_gradients}


def histograms(copies: dict[str, Any]) -> dict[str, Any]:
    """A row for W&B: a histogram of the finite values of each array; other values stay."""
    import wandb

    row = {}
    for name, value in copies.items():
        if name.startswith(PREFIX):
            row[name] = wandb.Histogram(np_histogram=np.histogram(value[np.isfinite(value)], bins=BINS))
        else:
            row[name] = value
    return row


def is_watched(row: dict[str, Any]) -> bool:
    """Whether a row of W&B's history holds gradients: metrics.jsonl has no such row."""
    return any(name.startswith(PREFIX) for name in row)
