"""The settings of the augmentation, with their ranges. The defaults are in conf/augmentation/none.yaml."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from cotnet.errors import DataError
from data.augmentation.policies import parse
from data.loading.plan import INTERPOLATIONS, check_repeats, number

_UP_TO: Final = {"flip": 1, "vertical_flip": 1, "color_jitter": 1, "hue": 0.5, "switch": 1, "erasing": 1}
_BOUNDS: Final = {"crop_scale": (0.0001, 1.0), "crop_ratio": (0.01, 100.0)}
_ALPHAS: Final = (0.01, 100.0)
_CHOICES: Final = {
    "interpolation": INTERPOLATIONS,
    "mix_by": ("batch", "pair", "element"),
    "erasing_fill": ("const", "rand", "pixel"),
}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is drawn for a training sample. 0 turns a part off. Raises DataError for a value out of range."""

    crop_scale: tuple[float, float] | None
    """Random resized crop: bounds of the share of the area, within 0.0001 to 1; None: the evaluation's central crop."""
    crop_ratio: tuple[float, float]
    """Random resized crop: bounds of width / height, within 0.01 to 100."""
    interpolation: str
    """bilinear or bicubic, antialiased."""
    flip: float
    """Probability of a left-right mirror image."""
    vertical_flip: float
    """Probability of a top-bottom mirror image."""
    repeats: int
    """Crops of each sample in an epoch, 1 to 1000. The epoch stays as long, so it sees fewer samples."""
    progressive: tuple[int, float, float] | None
    """Smallest image size in pixels, and the epochs from and until which it grows to the full one; None: one size."""
    color_jitter: float
    """c in 0 to 1: brightness, contrast and saturation by factors in [1 - c, 1 + c], in drawn order with hue."""
    hue: float
    """Largest shift of the hue, as a share of the circle, 0 to 0.5."""
    policy: str | None
    """Name of a RandAugment or TrivialAugment policy (data/augmentation/policies.py), None for none."""
    mixup: float
    """alpha of lambda's Beta(alpha, alpha), 0.01 to 100."""
    cutmix: float
    """Likewise for cutmix."""
    switch: float
    """Probability of cutmix if both are on."""
    mix_by: str
    """Whether mixing is drawn for each batch, pair or element."""
    mix_epochs: int | None
    """Epochs after which mixing ends, None for never."""
    erasing: float
    """Probability of random erasing."""
    erasing_fill: str
    """const (the mean), rand (one normal colour) or pixel (normal noise)."""

    def __post_init__(self) -> None:
        for name in _BOUNDS:
            object.__setattr__(self, name, _bounds(name, getattr(self, name)))
        if self.policy is not None:
            parse(self.policy)
        check_repeats(self.repeats)
        _check_progressive(self.progressive)
        for name, largest in _UP_TO.items():
            if not 0 <= getattr(self, name) <= largest:
                raise DataError(f"{name}={number(getattr(self, name))} must be from 0 to {largest:g}")
        least, most = _ALPHAS
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if alpha != 0 and not least <= alpha <= most:
                raise DataError(f"{name}={number(alpha)} must be 0, which is off, or from {least:g} to {most:g}")
        if self.mix_epochs is not None and self.mix_epochs < 0:
            raise DataError(f"mix_epochs={self.mix_epochs} must be at least 0, or null to mix to the end")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise DataError(f"{name}={getattr(self, name)} is unknown; use {' or '.join(choices)}")


def _list(values: Sequence[float]) -> str:
    return f"[{', '.join(map(number, values))}]"


def _bounds(name: str, given: Sequence[float] | None) -> tuple[float, float] | None:
    if given is None:
        return None
    bounds, (least, most) = tuple(given), _BOUNDS[name]
    if len(bounds) != 2 or not least <= bounds[0] <= bounds[1] <= most:
        raise DataError(f"{name}={_list(bounds)} must be two numbers, {least:g} <= low <= high <= {most:g}")
    return bounds[0], bounds[1]


def _check_progressive(given: Sequence[float] | None) -> None:
    if given is not None and (len(given) != 3 or not (given[0] >= 1 and 0 <= given[1] < given[2] < inf)):
        raise DataError(
            f"progressive={_list(given)} must be a size in pixels of at least 1, the epoch from which it grows and a "
            "later one until which"
        )
