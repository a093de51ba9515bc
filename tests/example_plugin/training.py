"""An augmentation, a loss, an optimizer and a schedule."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cotnet.engine.schedule import phased
from cotnet.settings import Setting, setting
from data.augmentation.settings import Augmentation
from data.loading.random import Stream, uniforms


@dataclass(frozen=True, kw_only=True)
class Dimmed(Augmentation):
    """The application's augmentation, and darker images."""

    darkest: float = setting("least factor of the brightness; each image has its own, up to 1", least=0, most=1)

    def own_operation(self, images: Tensor, samples: np.ndarray, *, seed: int, epoch: int) -> Tensor:
        """Each image times a factor that is drawn for it."""
        drawn = 1 - (1 - self.darkest) * uniforms(seed, epoch, Stream.FLIP, samples, 1)[:, 0]
        factors = torch.from_numpy(drawn.astype(np.float32)).to(images.device)
        return (images * factors[:, None, None, None]).to(torch.uint8)


def focal(
    logits: Tensor, targets: Tensor, *, gamma: Annotated[float, Setting("weight of hard images", least=0)]
) -> Tensor:
    """Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 4: logits (B, classes), targets (B,)."""
    log = F.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0]
    return (-((1 - log.exp()) ** gamma) * log).mean()


class SignDescent(torch.optim.Optimizer):
    """Each weight moves by the learning rate against the sign of its averaged gradient."""

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; no closure."""
        for group in self.param_groups:
            for weight in (one for one in group["params"] if one.grad is not None):
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean.sign(), alpha=group["lr"])


@phased
def inverse_root(
    epoch: float,
    *,
    peak: float,
    epochs: float,
    end: float,
    scale: Annotated[float, Setting("epochs after which the rate has fallen to 71 %", above=0)],
) -> float:
    """`peak` at epoch 0, falling with the inverse square root of the epoch."""
    return max(end, peak / math.sqrt(1 + epoch / scale))
