"""Losses of logits (B, classes) and class numbers (B,) or soft targets (B, classes), averaged over the batch."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from cotnet.settings import TrainSettings

Criterion = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float, threshold: float | None) -> Tensor:
    """Binary cross-entropy of each class (ResNet strikes back, arXiv:2110.00476, section 3.1), averaged over images AND
    classes, as in timm, with which that paper's learning rates were found. The gradient is 1/classes of the sum's: SGD
    is affected by this factor, LAMB and AdamW are not.

    `threshold`: a soft target above it counts as 1, any other as 0 (timm's `bce_target_thresh`: both classes of a mixed
    image are present); None keeps targets soft. Smoothing comes after that: y (1 - s) + s / classes.
    """
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits.shape[1])
    if threshold is not None:
        targets = targets > threshold
    wanted = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, wanted)


LOSSES: dict[str, Callable[[TrainSettings], Criterion]] = {
    "ce": lambda given: partial(F.cross_entropy, label_smoothing=given.label_smoothing),
    "bce": lambda given: partial(
        binary_cross_entropy, label_smoothing=given.label_smoothing, threshold=given.bce_threshold
    ),
}


def loss_function(settings: TrainSettings) -> Criterion:
    """The loss that `train.loss` names."""
    return LOSSES[settings.loss](settings)
