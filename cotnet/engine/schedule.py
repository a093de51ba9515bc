"""Learning rate as a pure function of the fractional epoch: no state, so a resumed run needs none.

Every schedule takes the fractional epoch first and returns the rate of that step, in the units of `peak`
(`optimizer.lr`); `warmup_epochs` rise linearly from `warmup_start` to the schedule's own value.
"""

import math

import torch


def _check(epochs: float, warmup_epochs: float) -> None:
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs={warmup_epochs:g} must be at least 0 and below the run's {epochs:g} epochs")


def cosine(epoch: float, *, peak: float, epochs: float, warmup_epochs: float, warmup_start: float, end: float) -> float:
    """Half a cosine from `peak` at epoch 0 to `end` at `epochs` (SGDR, arXiv:1608.03983, eq. 5 without restarts).

    The warm-up replaces the first epochs of the cosine, as in the recipes that CoTNet and PVT were published with.

    Raises:
        ValueError: the warm-up is negative or not shorter than the run.
    """
    _check(epochs, warmup_epochs)
    if epoch < warmup_epochs:
        return warmup_start + (peak - warmup_start) * epoch / warmup_epochs
    return end + (peak - end) * (1 + math.cos(math.pi * min(epoch / epochs, 1.0))) / 2


def step(
    epoch: float,
    *,
    peak: float,
    epochs: float,
    warmup_epochs: float,
    warmup_start: float,
    milestones: tuple[float, ...],
    gamma: float,
) -> float:
    """`peak` times `gamma` for each of the `milestones` (epochs) reached (ResNet, arXiv:1512.03385, section 3.4).

    Raises:
        ValueError: the warm-up is negative or not shorter than the run.
    """
    _check(epochs, warmup_epochs)
    if epoch < warmup_epochs:
        return warmup_start + (peak - warmup_start) * epoch / warmup_epochs
    return peak * gamma ** sum(epoch >= milestone for milestone in milestones)


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the rate times the group's own `lr_scale` (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
