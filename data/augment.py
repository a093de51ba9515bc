"""What happens to a uint8 batch on the device before the model sees it; the same for both loaders.

Every parameter is drawn on the CPU by data.draws: what concerns one sample is keyed by (seed, epoch, sample), so a
sample looks the same with either loader, on any number of ranks and after any restart; what concerns a batch or a
pair is keyed by its first sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod
from typing import Final

import numpy as np
import torch

from data.draws import BETA_DRAWS, Stream, beta, normals, uniforms
from data.mix import ERASING_DRAWS, cutmix, cutmix_boxes, erase, erasing_boxes, mix_targets, mixup
from data.operations import OPERATIONS, Canvas
from data.order import INTERPOLATIONS, check_repeats, number, to_device
from data.policies import Policy, draw, parse
from data.samples import DataError

_LARGEST: Final = {"flip": 1, "vertical_flip": 1, "color_jitter": 1, "hue": 0.5, "switch": 1, "erasing": 1}
_SCALES: Final = (0.0001, 1.0)  # of a crop's share of the area
_RATIOS: Final = (0.01, 100.0)  # of its width / height
_ALPHAS: Final = (0.01, 100.0)  # of mixup and cutmix
_CHOICES: Final = {
    "interpolation": INTERPOLATIONS,
    "mix_by": ("batch", "pair", "element"),
    "erasing_fill": ("const", "rand", "pixel"),
}
JITTER: Final = ("brightness", "contrast", "color", "hue")
_NOISE: Final = 1 << 20  # entries of the noise table; each erased image reads a window at its own drawn offset


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is drawn for a training sample; 0 turns a part off.

    crop_scale, crop_ratio: bounds of the random resized crop's share of the area and of its width / height; crop_scale
    None takes the evaluation's central crop. interpolation: bilinear or bicubic. flip, vertical_flip: probability of a
    mirror image left-right, top-bottom. repeats: crops of each sample in an epoch (data.order.TrainPlan). progressive:
    smallest size in pixels and the epochs from and until which it grows to the full one, None for one size.
    color_jitter: brightness, contrast and saturation by factors in [1 - c, 1 + c]; hue: moved by up to this share of
    the circle, at most 0.5; all in drawn order. policy: RandAugment or TrivialAugment by its name in data.policies,
    None for none.
    mixup, cutmix: alpha of Beta(alpha, alpha); switch: probability of cutmix where both are on; mix_by: whether that
    is drawn for a batch, a pair or an element; mix_epochs: epochs after which both end, None for never. erasing:
    probability; erasing_fill: const (the mean), rand (one normal colour) or pixel (normal noise).
    """

    crop_scale: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    interpolation: str
    flip: float
    vertical_flip: float
    repeats: int
    progressive: tuple[int, float, float] | None
    color_jitter: float
    hue: float
    policy: str | None
    mixup: float
    cutmix: float
    switch: float
    mix_by: str
    mix_epochs: int | None
    erasing: float
    erasing_fill: str

    def __post_init__(self) -> None:
        if self.crop_scale is not None:
            object.__setattr__(self, "crop_scale", _bounds("crop_scale", self.crop_scale, limits=_SCALES))
        object.__setattr__(self, "crop_ratio", _bounds("crop_ratio", self.crop_ratio, limits=_RATIOS))
        if self.policy is not None:
            parse(self.policy)
        check_repeats(self.repeats)
        _check_progressive(self.progressive)
        for name, largest in _LARGEST.items():
            if not 0 <= getattr(self, name) <= largest:
                raise DataError(f"{name}={number(getattr(self, name))} must be from 0 to {largest:g}")
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            if alpha != 0 and not _ALPHAS[0] <= alpha <= _ALPHAS[1]:
                least, most = _ALPHAS
                raise DataError(f"{name}={number(alpha)} must be 0, which is off, or from {least:g} to {most:g}")
        if self.mix_epochs is not None and self.mix_epochs < 0:
            raise DataError(f"mix_epochs={self.mix_epochs} must be at least 0, or null to mix to the end")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise DataError(f"{name}={getattr(self, name)} is unknown; use {' or '.join(choices)}")


def _list(values: Sequence[float]) -> str:
    return f"[{', '.join(map(number, values))}]"


def _bounds(name: str, given: Sequence[float], *, limits: tuple[float, float]) -> tuple[float, float]:
    bounds, (least, most) = tuple(given), limits
    if len(bounds) != 2 or not least <= bounds[0] <= bounds[1] <= most:
        raise DataError(f"{name}={_list(bounds)} must be two numbers, {least:g} <= low <= high <= {most:g}")
    return bounds[0], bounds[1]


def _check_progressive(given: Sequence[float] | None) -> None:
    if given is None:
        return
    if len(given) != 3 or not (given[0] >= 1 and 0 <= given[1] < given[2] < inf):
        raise DataError(
            f"progressive={_list(given)} must be a size in pixels of at least 1, the epoch from which it grows and a "
            "later one until which"
        )


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """(pixel / 255 - mean) / std per channel: uint8 (n, 3, H, W) to `dtype`; mean, std in units of the range [0, 1]."""
    exact = torch.promote_types(dtype, torch.float32)
    center, scale = (_per_channel(tuple(values), exact, images.device) for values in (mean, std))
    return _empty(images, exact).copy_(images).sub_(center).div_(scale).to(dtype)


def _empty(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Memory of this shape and type. On the CPU numpy's, which asks for huge pages: with torch's own `normalize` takes
    three times as long (0.39 to 0.12 ms an image at 224 px), nearly all of it in the system's page faults."""
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=dtype)
    return torch.from_numpy(np.empty(like.shape, dtype={torch.float32: np.float32, torch.float64: np.float64}[dtype]))


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device).mul(255)[:, None, None]  # kept on the device


class Transform:
    """Turns a loader's uint8 batch into what the model trains on: top-bottom flip, colour jitter, policy, normalise,
    erase, then mixup or cutmix.

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
        self._policy = parse(augmentation.policy) if augmentation.policy else None
        mean_colour = self._policy and self._policy.fills_with_mean
        red, green, blue = (round(255 * channel) if mean_colour else 0 for channel in self._mean)
        self._canvas = Canvas(augmentation.interpolation, (red, green, blue))

    def __call__(
        self, images: torch.Tensor, targets: torch.Tensor, indices: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """images (n, 3, H, W) uint8 and targets (n,) on the device, indices (n,) on the CPU -> normalised images in
        dtype, and targets: (n,) int64 as given, or (n, num_classes) probabilities in dtype where samples are mixed."""
        samples = indices.numpy()
        if self._augmentation.vertical_flip:
            images = self._flip_vertically(images, samples, epoch)
        if self._augmentation.color_jitter or self._augmentation.hue:
            images = self._jitter(images, samples, epoch)
        if self._policy:
            images = self._apply_policy(images, self._policy, samples, epoch)
        normal = normalize(images, self._mean, self._std, self._dtype)
        if self._augmentation.erasing:
            normal = self._erase(normal, samples, epoch)
        ended = self._augmentation.mix_epochs is not None and epoch >= self._augmentation.mix_epochs
        if (self._augmentation.mixup or self._augmentation.cutmix) and not ended:
            return self._mix(normal, targets, samples, epoch)
        return normal, targets

    def _flip_vertically(self, images: torch.Tensor, samples: np.ndarray, epoch: int) -> torch.Tensor:
        drawn = uniforms(self._seed, epoch, Stream.FLIP, samples, 2)[:, 1] < self._augmentation.vertical_flip
        rows = to_device(np.flatnonzero(drawn), images.device)
        return images.index_copy(0, rows, images.index_select(0, rows).flip(2))

    def _jitter(self, images: torch.Tensor, samples: np.ndarray, epoch: int) -> torch.Tensor:
        order, parameters = jitter_draws(self._augmentation, samples, seed=self._seed, epoch=epoch)
        return apply_drawn(images, JITTER, order, parameters, self._canvas)

    def _apply_policy(self, images: torch.Tensor, policy: Policy, samples: np.ndarray, epoch: int) -> torch.Tensor:
        height, width = images.shape[-2:]
        drawn, parameters = draw(policy, samples, seed=self._seed, epoch=epoch, height=height, width=width)
        return apply_drawn(images, policy.operations, drawn, parameters, self._canvas)

    def _erase(self, images: torch.Tensor, samples: np.ndarray, epoch: int) -> torch.Tensor:
        height, width = images.shape[-2:]
        uniform = uniforms(self._seed, epoch, Stream.ERASING, samples, ERASING_DRAWS + 1)
        boxes = erasing_boxes(height, width, self._augmentation.erasing, uniform[:, :ERASING_DRAWS])
        chosen = np.flatnonzero(boxes[:, 2])  # the others are not touched
        if not len(chosen):
            return images
        rows, boxes_there = (to_device(part, images.device) for part in (chosen, boxes[chosen]))
        starts = to_device((uniform[chosen, -1] * _NOISE).astype(np.int64), images.device)
        values = _fill(self._augmentation.erasing_fill, starts, images)
        return images.index_copy(0, rows, erase(images.index_select(0, rows), boxes_there, values))

    def _mix(
        self, images: torch.Tensor, targets: torch.Tensor, samples: np.ndarray, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = images.shape[-2:]
        drawn = mix_draws(self._augmentation, samples, seed=self._seed, epoch=epoch, height=height, width=width)
        by_cutmix, kept, boxes, left = drawn
        shares = np.stack([np.where(by_cutmix, 1, kept), np.where(by_cutmix, left, kept)])
        mixed_up, own = to_device(shares, images.device).to(self._dtype)
        mixed = images if by_cutmix.all() else mixup(images, mixed_up)
        if by_cutmix.any():
            mixed = cutmix(mixed, to_device(boxes, images.device), images)
        return mixed, mix_targets(targets, own, self._num_classes)


def jitter_draws(
    augmentation: Augmentation, samples: np.ndarray, *, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """For n samples: (n, 4) indices into JITTER in drawn order, -1 where that part is off, and (n, 4, 3) parameters."""
    uniform = uniforms(seed, epoch, Stream.JITTER, samples, 2 * len(JITTER))
    order = uniform[:, : len(JITTER)].argsort(axis=1)
    values = 2 * uniform[:, len(JITTER) :] - 1
    values[:, :3] = 1 + augmentation.color_jitter * values[:, :3]
    values[:, 3] *= augmentation.hue
    parameters = np.zeros((*order.shape, 3))
    parameters[..., 0] = np.take_along_axis(values, order, axis=1)
    off = order == 3 if not augmentation.hue else (order < 3) & (not augmentation.color_jitter)
    return np.where(off, -1, order), parameters


def mix_draws(
    augmentation: Augmentation, samples: np.ndarray, *, seed: int, epoch: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For a batch of n samples of height x width pixels: which are mixed by cutmix (n,), lambda (n,), cutmix's boxes
    (n, 4), empty where it is mixup's turn, and the shares (n,) that are left outside them."""
    place = np.arange(len(samples))
    pair = np.minimum(place, place[::-1])
    keys = samples[{"batch": np.zeros_like(place), "pair": pair, "element": place}[augmentation.mix_by]]
    uniform = uniforms(seed, epoch, Stream.MIX, keys, 3 + BETA_DRAWS)
    by_cutmix = np.full(len(keys), bool(augmentation.cutmix))
    by_cutmix &= not augmentation.mixup or uniform[:, 0] < augmentation.switch
    kept = np.ones(len(keys))
    for alpha, chosen in ((augmentation.cutmix, by_cutmix), (augmentation.mixup, ~by_cutmix)):
        if chosen.any():
            kept[chosen] = beta(alpha, uniform[chosen, 3:])
    boxes, left = cutmix_boxes(kept, height, width, uniform[:, 1:3])
    boxes[~by_cutmix] = 0
    return by_cutmix, kept, boxes, left


def apply_drawn(
    images: torch.Tensor, names: Sequence[str], drawn: np.ndarray, parameters: np.ndarray, canvas: Canvas
) -> torch.Tensor:
    """Operation names[drawn[i, k]] with parameters[i, k] on image i, for k = 0, 1, ... in turn; -1: none.

    images (n, 3, H, W) uint8, drawn (n, count), parameters (n, count, 3). Each operation runs once per k, on the images
    that drew it.
    """
    images = images.clone()
    for turn in range(drawn.shape[1]):
        for index in np.unique(drawn[:, turn]):
            if index < 0 or names[index] == "identity":
                continue
            members = np.flatnonzero(drawn[:, turn] == index)
            rows, given = (to_device(part, images.device) for part in (members, parameters[members, turn]))
            _put(images, rows, OPERATIONS[names[index]](images.index_select(0, rows), given, canvas))
    return images


def _put(images: torch.Tensor, rows: torch.Tensor, changed: torch.Tensor) -> None:
    """images[rows] = changed, (n, C, H, W) uint8: eight pixels at a time where they divide so, which a CPU notices."""
    kind = torch.int64 if images[0].numel() % 8 == 0 else torch.uint8
    images.flatten(1).view(kind).index_copy_(0, rows, changed.flatten(1).view(kind))


@lru_cache(maxsize=4)
def _noise(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The table of standard normals, the same for every seed: only the offsets into it are drawn."""
    counters = np.arange(_NOISE)
    table = normals(uniforms(0, 0, Stream.NOISE, counters, 2))[:, 0]
    return to_device(table, device).to(dtype)


def _fill(kind: str, starts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """What erased regions hold, in the normalised batch: broadcasts to (n, C, H, W) for n offsets into the table."""
    if kind == "const":
        return images.new_zeros(1)
    shape = tuple(images.shape[1:]) if kind == "pixel" else (images.shape[1], 1, 1)
    window = torch.arange(prod(shape), device=images.device)
    table = _noise(images.dtype, images.device)
    return table[(starts[:, None] + window) % _NOISE].unflatten(1, shape)
