"""What happens to a uint8 batch on the device before the model sees it, the same for both loaders.

All parameters are drawn on the CPU by data.loading.random, keyed by (seed, epoch, sample), so a sample looks the same
with either loader, on any number of ranks and after any restart. What concerns a batch or a pair is keyed by its first
sample. `samples` are the batch's plan indices, (n,).

Mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018. Cutmix: Yun et al., "CutMix", 2019, algorithm
A1. Erasing: Zhong et al., "Random Erasing Data Augmentation", 2017, algorithm 1. Both mixtures pair image i with image
n - 1 - i. `lam` is the image's own share, the papers' lambda; boxes are top, left, height, width.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Final, NamedTuple

import numpy as np
import torch
from torch.nn.functional import one_hot

from data.augmentation.fused import fused_turn, look_up, usable
from data.augmentation.operations import OPERATIONS, Canvas, constant, erase
from data.augmentation.policies import draw, parse
from data.augmentation.settings import Augmentation
from data.loading.plan import ATTEMPTS, CROP_UNIFORMS, candidates, to_device
from data.loading.random import BETA_DRAWS, Stream, beta, normals, uniforms

JITTER: Final = ("brightness", "contrast", "color", "hue")
ERASING_AREA: Final = (0.02, 1 / 3)  # bounds of the erased share of the area
ERASING_RATIO: Final = (0.3, 1 / 0.3)  # bounds of height / width
ERASING_DRAWS: Final = CROP_UNIFORMS + 1
_NOISE: Final = 1 << 20  # entries of the noise table; each erased image reads a window at a drawn offset


def normalize(
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    *,
    fused: bool | None = None,
) -> torch.Tensor:
    """(pixel / 255 - mean) / std per channel: uint8 (n, 3, H, W) to `dtype`; mean, std of images in [0, 1].

    fused: one kernel that looks levels up; None: where it runs.
    """
    if usable(images.device) if fused is None else fused:
        return look_up(images, _normal_levels(tuple(mean), tuple(std), dtype, images.device))
    exact = torch.promote_types(dtype, torch.float32)
    center, scale = (255 * constant(tuple(values), exact, images.device)[:, None, None] for values in (mean, std))
    if images.device.type == "cpu":  # NumPy's memory uses huge pages: 0.12 ms an image of 224 px instead of 0.39
        pixels = torch.from_numpy(np.empty(images.shape, dtype=str(exact).removeprefix("torch.")))
    else:
        pixels = torch.empty_like(images, dtype=exact)
    return pixels.copy_(images).sub_(center).div_(scale).to(dtype)


@lru_cache(maxsize=8)
def _normal_levels(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """(3, 256): what the levels of each channel become, on the device."""
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    return normalize(levels, mean, std, dtype, fused=False)[0, :, 0].to(device)


class Transform:
    """uint8 batch to training input: vertical flip, colour jitter, policy, normalise, erase, then mixup or cutmix."""

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
        """Normalised images in dtype, and targets: (n,) as given, or (n, num_classes) probabilities if mixed.

        images: (n, 3, H, W) uint8, targets: (n,) int64, both on the device; indices: (n,) on the CPU.
        """
        given, samples = self._augmentation, indices.numpy()
        if given.vertical_flip:
            drawn = uniforms(self._seed, epoch, Stream.FLIP, samples, 2)[:, 1] < given.vertical_flip
            rows = to_device(np.flatnonzero(drawn), images.device)
            images = images.index_copy(0, rows, images.index_select(0, rows).flip(2))
        if given.color_jitter or given.hue:
            order, parameters = jitter_draws(given, samples, seed=self._seed, epoch=epoch)
            images = apply_drawn(images, JITTER, drawn=order, parameters=parameters, canvas=self._canvas)
        if self._policy:
            height, width = images.shape[-2:]
            drawn, parameters = draw(self._policy, samples, seed=self._seed, epoch=epoch, height=height, width=width)
            names = self._policy.operations
            images = apply_drawn(images, names, drawn=drawn, parameters=parameters, canvas=self._canvas)
        images = given.own_operation(images, samples, seed=self._seed, epoch=epoch)
        normal = normalize(images, self._mean, self._std, self._dtype)
        if given.erasing:
            normal = self._erase(normal, samples, epoch=epoch)
        ended = given.mix_epochs is not None and epoch >= given.mix_epochs
        if (given.mixup or given.cutmix) and not ended:
            return self._mix(normal, targets, samples=samples, epoch=epoch)
        return normal, targets

    def _erase(self, images: torch.Tensor, samples: np.ndarray, *, epoch: int) -> torch.Tensor:
        height, width = images.shape[-2:]
        uniform = uniforms(self._seed, epoch, Stream.ERASING, samples, ERASING_DRAWS + 1)
        boxes = erasing_boxes(self._augmentation.erasing, uniform[:, :ERASING_DRAWS], height=height, width=width)
        chosen = np.flatnonzero(boxes[:, 2])  # the others are not touched
        if not len(chosen):
            return images
        starts = (uniform[chosen, -1] * _NOISE).astype(np.int64)
        rows, boxes_there, windows = (to_device(part, images.device) for part in (chosen, boxes[chosen], starts))
        values = _fill(self._augmentation.erasing_fill, windows, like=images)
        return images.index_copy(0, rows, erase(images.index_select(0, rows), boxes_there, values=values))

    def _mix(
        self, images: torch.Tensor, targets: torch.Tensor, *, samples: np.ndarray, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = images.shape[-2:]
        drawn = mix_draws(self._augmentation, samples, seed=self._seed, epoch=epoch, height=height, width=width)
        shares = np.stack([np.where(drawn.by_cutmix, 1, drawn.lam), np.where(drawn.by_cutmix, drawn.left, drawn.lam)])
        lam, own = to_device(shares, images.device).to(self._dtype)
        mixed = images if drawn.by_cutmix.all() else mixup(images, lam)
        if drawn.by_cutmix.any():
            mixed = cutmix(mixed, to_device(drawn.boxes, images.device), originals=images)
        return mixed, mix_targets(targets, own, num_classes=self._num_classes)


def mixup(images: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """lam x image + (1 - lam) x partner: images (n, C, H, W), lam (n,)."""
    return torch.lerp(images.flip(0), images, lam[:, None, None, None])


def cutmix(images: torch.Tensor, boxes: torch.Tensor, *, originals: torch.Tensor) -> torch.Tensor:
    """Each image (n, C, H, W) with its box (n, 4) from its partner in `originals`, the batch before mixup."""
    return erase(images, boxes, values=originals.flip(0))


def mix_targets(targets: torch.Tensor, lam: torch.Tensor, *, num_classes: int) -> torch.Tensor:
    """Class probabilities (n, num_classes), in lam's dtype, from labels (n,) and lam (n,)."""
    own = one_hot(targets, num_classes).to(lam.dtype)
    return torch.lerp(own.flip(0), own, lam[:, None])


def cutmix_boxes(lam: np.ndarray, uniform: np.ndarray, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) int64, and lam (n,) adjusted to boxes that the border cuts (A1).

    lam: (n,). uniform: (n, 2) in [0, 1), for the centre, uniform over the pixels.
    """
    sides = np.array([height, width])
    half = (sides * np.sqrt(1 - lam)[:, None]).astype(np.int64) // 2
    center = (sides * uniform).astype(np.int64)
    corner = np.maximum(center - half, 0)
    size = np.minimum(center + half, sides) - corner
    return np.concatenate([corner, size], axis=1), 1 - size.prod(axis=1) / (height * width)


def erasing_boxes(probability: float, uniform: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Boxes (n, 4) int64; all zero if nothing is erased.

    uniform: (n, ERASING_DRAWS) in [0, 1). The first of ten candidates that is smaller than the image.
    """
    heights, widths = candidates(height * width, uniform, share=ERASING_AREA, ratio=ERASING_RATIO)
    fits = (heights < height) & (widths < width)
    rows, chosen = np.arange(len(uniform)), fits.argmax(axis=1)
    size = np.stack([heights[rows, chosen], widths[rows, chosen]], axis=1)
    corner = np.floor((np.array([height, width]) - size + 1) * uniform[:, 2 * ATTEMPTS : CROP_UNIFORMS])
    erased = (uniform[:, -1] < probability) & fits.any(axis=1)
    return np.where(erased[:, None], np.concatenate([corner, size], axis=1), 0).astype(np.int64)


def jitter_draws(
    augmentation: Augmentation, samples: np.ndarray, *, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) indices into JITTER in drawn order, -1 for a part that is off, and (n, 4, 3) parameters."""
    uniform = uniforms(seed, epoch, Stream.JITTER, samples, 2 * len(JITTER))
    order = uniform[:, : len(JITTER)].argsort(axis=1)
    values = 2 * uniform[:, len(JITTER) :] - 1
    values[:, :3] = 1 + augmentation.color_jitter * values[:, :3]
    values[:, 3] *= augmentation.hue
    parameters = np.zeros((*order.shape, 3))
    parameters[..., 0] = np.take_along_axis(values, order, axis=1)
    off = order == 3 if not augmentation.hue else (order < 3) & (not augmentation.color_jitter)
    return np.where(off, -1, order), parameters


class MixDraws(NamedTuple):
    """How the n samples of a batch are mixed."""

    by_cutmix: np.ndarray  # (n,) bool: cutmix, else mixup
    lam: np.ndarray  # (n,): lambda
    boxes: np.ndarray  # (n, 4): cutmix's boxes, empty for mixup
    left: np.ndarray  # (n,): share of the image outside its box


def mix_draws(
    augmentation: Augmentation, samples: np.ndarray, *, seed: int, epoch: int, height: int, width: int
) -> MixDraws:
    """What is drawn for a batch of images of height x width pixels."""
    position = np.arange(len(samples))
    pair = np.minimum(position, position[::-1])
    keys = samples[{"batch": np.zeros_like(position), "pair": pair, "element": position}[augmentation.mix_by]]
    uniform = uniforms(seed, epoch, Stream.MIX, keys, 3 + BETA_DRAWS)
    by_cutmix = np.full(len(keys), bool(augmentation.cutmix))
    by_cutmix &= not augmentation.mixup or uniform[:, 0] < augmentation.switch
    lam = np.ones(len(keys))
    for alpha, chosen in ((augmentation.cutmix, by_cutmix), (augmentation.mixup, ~by_cutmix)):
        if chosen.any():
            lam[chosen] = beta(alpha, uniform[chosen, 3:])
    boxes, left = cutmix_boxes(lam, uniform[:, 1:3], height=height, width=width)
    boxes[~by_cutmix] = 0
    return MixDraws(by_cutmix, lam, boxes, left)


def apply_drawn(
    images: torch.Tensor,
    names: Sequence[str],
    *,
    drawn: np.ndarray,
    parameters: np.ndarray,
    canvas: Canvas,
    fused: bool | None = None,
) -> torch.Tensor:
    """Operation names[drawn[i, k]] with parameters[i, k] on image i, for k = 0, 1, ... in turn; -1: none.

    images: (n, 3, H, W) uint8, drawn: (n, count), parameters: (n, count, 3). fused: one kernel for each k, with the
    same pixels; None: where it runs.
    """
    if fused is None:
        fused = usable(images.device)
    turn, images = (fused_turn, images) if fused else (_turn, images.clone())
    for k in range(drawn.shape[1]):
        images = turn(images, names, drawn=drawn[:, k], parameters=parameters[:, k], canvas=canvas)
    return images


def _turn(
    images: torch.Tensor, names: Sequence[str], *, drawn: np.ndarray, parameters: np.ndarray, canvas: Canvas
) -> torch.Tensor:
    """As fused_turn, in place: each operation on the images that drew it."""
    for index in np.unique(drawn):
        if index < 0 or names[index] == "identity":
            continue
        members = np.flatnonzero(drawn == index)
        rows, given = (to_device(part, images.device) for part in (members, parameters[members]))
        changed = OPERATIONS[names[index]](images.index_select(0, rows), given, canvas)
        # Copy as int64 if divisible by eight: faster on the CPU.
        kind = torch.int64 if images[0].numel() % 8 == 0 else torch.uint8
        images.flatten(1).view(kind).index_copy_(0, rows, changed.flatten(1).view(kind))
    return images


@lru_cache(maxsize=4)
def _noise(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The table of standard normals, the same for every seed: only offsets into it are drawn."""
    table = normals(uniforms(0, 0, Stream.NOISE, np.arange(_NOISE), 2))[:, 0]
    return to_device(table, device).to(dtype)


def _fill(kind: str, starts: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Content of erased regions of a normalised batch, for n offsets into the noise; broadcasts to (n, C, H, W)."""
    if kind == "const":
        return like.new_zeros(1)
    shape = tuple(like.shape[1:]) if kind == "pixel" else (like.shape[1], 1, 1)
    window = torch.arange(prod(shape), device=like.device)
    return _noise(like.dtype, like.device)[(starts[:, None] + window) % _NOISE].unflatten(1, shape)
