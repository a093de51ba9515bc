"""What happens to a uint8 batch on the device before the model sees it; the same for both loaders.

Every parameter is drawn on the CPU by data.draws: what concerns one sample is keyed by (seed, epoch, sample), so a
sample looks the same with either loader, on any number of ranks and after any restart; what concerns a batch is keyed
by its first sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np
import torch

from data.draws import BETA_DRAWS, Stream, beta, normals, uniforms
from data.mix import ERASING_DRAWS, cutmix, cutmix_box, erase, erasing_boxes, mix_targets, mixup
from data.samples import DataError

ERASING_FILLS: Final = ("const", "rand", "pixel")
_NOISE: Final = 1 << 20  # entries of the noise table; each erased image reads a window at its own drawn offset


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is drawn for a training sample; 0 turns a part off.

    crop_scale, crop_ratio: bounds of the random resized crop's share of the area and of its width / height; crop_scale
    None takes the evaluation's central crop. interpolation: bilinear or bicubic. flip: probability of a mirror image.
    mixup, cutmix: alpha of Beta(alpha, alpha); switch: probability of cutmix where both are on. erasing: probability;
    erasing_fill: const (the mean), rand (one normal colour) or pixel (normal noise).
    """

    crop_scale: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    interpolation: str
    flip: float
    mixup: float
    cutmix: float
    switch: float
    erasing: float
    erasing_fill: str

    def __post_init__(self) -> None:
        if self.crop_scale is not None:
            object.__setattr__(self, "crop_scale", _bounds("crop_scale", self.crop_scale, 1))
        object.__setattr__(self, "crop_ratio", _bounds("crop_ratio", self.crop_ratio, float("inf")))
        for name in ("flip", "switch", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"augmentation.{name} {getattr(self, name)} is no probability; give one in [0, 1]")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) != 0 and not 0.01 <= getattr(self, name) <= 100:
                raise DataError(f"augmentation.{name} {getattr(self, name)} is not 0 (off) or an alpha in [0.01, 100]")
        for name, choices in (("interpolation", ("bilinear", "bicubic")), ("erasing_fill", ERASING_FILLS)):
            if getattr(self, name) not in choices:
                raise DataError(f"augmentation.{name} {getattr(self, name)!r} is unknown; use {' or '.join(choices)}")


def _bounds(name: str, given: Sequence[float], largest: float) -> tuple[float, float]:
    bounds = tuple(given)
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= largest:
        upper = "" if largest == float("inf") else f" <= {largest}"
        raise DataError(f"augmentation.{name} {list(bounds)} is not two numbers 0 < low <= high{upper}")
    return bounds[0], bounds[1]


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """(pixel / 255 - mean) / std per channel: uint8 (n, 3, H, W) to `dtype`; mean, std in units of the range [0, 1]."""
    exact = torch.promote_types(dtype, torch.float32)
    center, scale = (_per_channel(tuple(values), exact, images.device) for values in (mean, std))
    return images.to(exact).sub_(center).div_(scale).to(dtype)


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device).mul(255)[:, None, None]  # kept on the device


class Transform:
    """Turns a loader's uint8 batch into what the model trains on: normalise, erase, then mixup or cutmix.

    A class only because it is bound to a run's settings; it has no state.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._augmentation, self._mean, self._std = augmentation, tuple(mean), tuple(std)
        self._num_classes, self._seed, self._dtype = num_classes, seed, dtype

    def __call__(
        self, images: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """images (n, 3, H, W) uint8 and targets (n,) on the device, indices (n,) on the CPU -> normalised images in
        dtype, and targets: (n,) int64 as given, or (n, num_classes) probabilities in dtype where samples are mixed."""
        samples = indices.numpy()
        normal = normalize(images, self._mean, self._std, self._dtype)
        if self._augmentation.erasing:
            normal = self._erase(normal, samples, epoch)
        if self._augmentation.mixup or self._augmentation.cutmix:
            return self._mix(normal, targets, samples[:1], epoch)
        return normal, targets

    def _erase(self, images: torch.Tensor, samples: np.ndarray, epoch: int) -> torch.Tensor:
        height, width = images.shape[-2:]
        uniform = uniforms(self._seed, epoch, Stream.ERASING, samples, ERASING_DRAWS + 1)
        boxes = erasing_boxes(height, width, self._augmentation.erasing, uniform[:, :ERASING_DRAWS])
        chosen = np.flatnonzero(boxes[:, 2])  # the others are not touched
        if not len(chosen):
            return images
        rows, boxes_there = (torch.from_numpy(part).to(images.device) for part in (chosen, boxes[chosen]))
        starts = torch.from_numpy((uniform[chosen, -1] * _NOISE).astype(np.int64)).to(images.device)
        values = _fill(self._augmentation.erasing_fill, starts, images)
        return images.index_copy(0, rows, erase(images[rows], boxes_there, values))

    def _mix(
        self, images: torch.Tensor, targets: torch.Tensor, first: np.ndarray, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        choice, row, column = uniforms(self._seed, epoch, Stream.MIX_BOX, first, 3)[0]
        given = self._augmentation
        with_cutmix = bool(given.cutmix) and (not given.mixup or choice < given.switch)
        alpha = given.cutmix if with_cutmix else given.mixup
        kept = float(beta(alpha, uniforms(self._seed, epoch, Stream.MIX, first, BETA_DRAWS))[0])
        if with_cutmix:
            box, kept = cutmix_box(kept, images.shape[-2], images.shape[-1], np.array([row, column]))
            mixed = cutmix(images, box)
        else:
            mixed = mixup(images, kept)
        return mixed, mix_targets(targets, kept, self._num_classes, self._dtype)


@lru_cache(maxsize=4)
def _noise(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The table of standard normals, the same for every seed: only the offsets into it are drawn."""
    counters = np.arange(_NOISE)
    table = normals(uniforms(0, 0, Stream.NOISE, counters, 2))[:, 0]
    return torch.from_numpy(table).to(device, dtype)


def _fill(kind: str, starts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """What erased regions hold, in the normalised batch: broadcasts to (n, C, H, W) for n offsets into the table."""
    if kind == "const":
        return images.new_zeros(1)
    shape = tuple(images.shape[1:]) if kind == "pixel" else (images.shape[1], 1, 1)
    window = torch.arange(prod(shape), device=images.device)
    table = _noise(images.dtype, images.device)
    return table[(starts[:, None] + window) % _NOISE].unflatten(1, shape)
