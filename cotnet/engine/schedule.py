"""Learning rate schedules: pure functions of the fractional epoch, so a resumed run needs no schedule state.

A call `cosine(epoch, peak=, epochs=, warmup_epochs=, warmup_start=, cooldown_epochs=, end=)` returns the learning
rate, in the units of `peak` (`optimizer.lr`). `phased` adds warm-up and cool-down to every schedule. The first
`warmup_epochs` rise linearly from `warmup_start` to `peak` and REPLACE the schedule's own first epochs, as in the
recipes of CoTNet and PVT: the decay has already begun when the warm-up ends. The last `cooldown_epochs` stay at `end`;
the schedule itself ends where they begin.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

from cotnet.settings import Setting

if TYPE_CHECKING:
    import torch

Schedule = Callable[..., float]
Power = Annotated[float, Setting("exponent of the share of epochs that are left", above=0)]
PeakEpoch = Annotated[float, Setting("epoch until which the rate stays at its peak, after the warm-up", least=0)]
Milestones = Annotated[tuple[float, ...], Setting("epochs from each of which the rate is `gamma` times as large")]
Gamma = Annotated[float, Setting("factor of the rate at each of the milestones", above=0)]
WARMUP_EPOCHS: Final = 5.0  # of the released recipes of CoTNet and PVT


def warmup_of(given: float | None, *, epochs: float) -> float:
    """Warm-up epochs: the given number, or by default 5 but at most a tenth of the run's `epochs`."""
    return min(WARMUP_EPOCHS, epochs / 10) if given is None else given


def phased(decay: Schedule) -> Schedule:
    """Adds warm-up and cool-down to `decay(epoch, *, peak, epochs, end, ...)`. The schedule raises ValueError if they
    leave no epoch in between."""

    def schedule(
        epoch: float,
        *,
        peak: float,
        epochs: float,
        warmup_epochs: Annotated[
            float, Setting("epochs in which the rate rises to `optimizer.lr`; null: 5, at most a tenth of all", least=0)
        ],
        warmup_start: Annotated[float, Setting("learning rate at the start of the warm-up", least=0)],
        cooldown_epochs: Annotated[float, Setting("last epochs of the run, which stay at `schedule.end`", least=0)],
        end: Annotated[float, Setting("learning rate at the end; `step`: of the cool-down only", least=0)],
        **shape: float | tuple[float, ...],
    ) -> float:
        until = epochs - cooldown_epochs
        before = f" before the cool-down of {cooldown_epochs:g}" if cooldown_epochs else ""
        phases = (("cooldown_epochs", cooldown_epochs, epochs, ""), ("warmup_epochs", warmup_epochs, until, before))
        for name, length, most, where in phases:
            if length >= most:
                allowed = f"below the run's {most:g} epochs{where}"
                raise ValueError(f"{name}={length:g} must be {allowed}; set schedule.{name}={most / 10:g} or less")
        own = decay(min(epoch, until), peak=peak, epochs=until, end=end, **shape)
        if epoch < warmup_epochs:
            return warmup_start + (peak - warmup_start) * epoch / warmup_epochs
        return end if cooldown_epochs and epoch >= until else own

    both = [p for function in (decay, schedule) for p in inspect.signature(function).parameters.values()]
    named = {p.name: p for p in both if p.kind is not p.VAR_KEYWORD}
    functools.update_wrapper(schedule, decay)
    schedule.__signature__ = inspect.Signature(list(named.values()))  # type: ignore[attr-defined]
    schedule.__annotations__ = {name: p.annotation for name, p in named.items()}  # checked against both
    return schedule


@phased
def cosine(epoch: float, *, peak: float, epochs: float, end: float) -> float:
    """Half a cosine from `peak` at epoch 0 to `end` at `epochs` (SGDR, arXiv:1608.03983, eq. 5 without restarts)."""
    return end + (peak - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@phased
def linear(epoch: float, *, peak: float, epochs: float, end: float) -> float:
    """A straight line from `peak` at epoch 0 to `end` at `epochs`."""
    return end + (peak - end) * (1 - epoch / epochs)


@phased
def polynomial(epoch: float, *, peak: float, epochs: float, end: float, power: Power) -> float:
    """From `peak` at epoch 0 to `end` at `epochs` as (1 - epoch / epochs) ** power (arXiv:1506.04579, section 3.2)."""
    return end + (peak - end) * (1 - epoch / epochs) ** power


@phased
def triangular(epoch: float, *, peak: float, epochs: float, end: float, peak_epoch: PeakEpoch) -> float:
    """`peak` until `peak_epoch`, then a straight line to `end` at `epochs`; the warm-up is the rise (FFCV, and the
    slanted triangle of arXiv:1801.06146, eq. 3). Raises ValueError if `peak_epoch` is not within the run."""
    if peak_epoch >= epochs:
        raise ValueError(f"peak_epoch={peak_epoch:g} must be below {epochs:g}, where the schedule ends")
    return end + (peak - end) * min(1.0, (epochs - epoch) / (epochs - peak_epoch))


@phased
def step(epoch: float, *, peak: float, milestones: Milestones, gamma: Gamma, **_unused: float) -> float:
    """`peak` times `gamma` for each of the `milestones` (epochs) reached (ResNet, arXiv:1512.03385, section 3.4)."""
    return peak * gamma ** sum(epoch >= milestone for milestone in milestones)


def set_lr(optimizer: "torch.optim.Optimizer", rate: float) -> None:
    """Sets the rate of every parameter group: `rate` times the group's `lr_scale` (default 1)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
