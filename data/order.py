"""Which sample, crop box and flip at (seed, epoch, position): pure functions and the two plans built on them.

A loader only executes a plan, so both loaders give the same crops, any number of ranks can continue a run, and the
whole state of a loader is (epoch, batch).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch

from data.draws import Stream, hashes, uniforms
from data.samples import DataError

PADDING: Final = -1  # the index of an entry that only fills a batch up to its fixed size
INTERPOLATIONS: Final = ("bilinear", "bicubic")  # both antialiased
_ATTEMPTS: Final = 10  # torchvision's RandomResizedCrop gives up after as many
_MOST_THREADS: Final = 1024
_MOST_PREFETCHED: Final = 1000
_MOST_REPEATS: Final = 1000
CROP_RATIOS: Final = (0.1, 1.0)  # an image is resized to image_size / crop_ratio: memory ends far below 0.1


class Geometry(NamedTuple):
    """What is done to each of n images, in this order; int64 in pixels, height before width."""

    box: np.ndarray  # (n, 4): top, left, height, width of the region that is decoded
    size: np.ndarray  # (n, 2): the region is resized to this height, width (antialiased)
    offset: np.ndarray  # (n, 2): then cropped to (image_size, image_size) at this top, left
    flip: np.ndarray  # (n,) bool: then mirrored left-right


class Batch(NamedTuple):
    """What a loader gives: n images of size S."""

    images: torch.Tensor  # (n, 3, S, S) uint8 RGB, on the device
    targets: torch.Tensor  # (n,) int64, on the device; 0 where padded
    indices: torch.Tensor  # (n,) int64, on the CPU: what the plan gave; modulo the set's size the index of the file


def number(value: float) -> str:
    """How an error names a number: 2.0 as 2."""
    return str(value).removesuffix(".0")


def check_loader(interpolation: str, threads: int, prefetch: int, *, least_threads: int) -> None:
    """DataError for loader settings that cannot be."""
    if interpolation not in INTERPOLATIONS:
        raise DataError(f"interpolation={interpolation} is unknown; use {' or '.join(INTERPOLATIONS)}")
    if not least_threads <= threads <= _MOST_THREADS:
        raise DataError(f"threads={threads} must be from {least_threads} to {_MOST_THREADS}")
    if not 1 <= prefetch <= _MOST_PREFETCHED:
        raise DataError(f"prefetch={prefetch} must be from 1 to {_MOST_PREFETCHED}")


def check_repeats(repeats: int) -> None:
    """DataError for a number of repetitions that cannot be."""
    if not 1 <= repeats <= _MOST_REPEATS:
        raise DataError(f"repeats={repeats} must be from 1, every image once, to {_MOST_REPEATS}; PVT uses 3")


def _check_crop_ratio(crop_ratio: float) -> None:
    least, most = CROP_RATIOS
    if not least <= crop_ratio <= most:
        raise DataError(f"crop_ratio={number(crop_ratio)} must be from {least:g} to {most:g}; 0.875 is usual")


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Parameters on the device, without making the host wait for what a GPU is doing (it does for pageable memory)."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Plan(Protocol):
    """What a loader executes: this rank's batches of an epoch."""

    @property
    def samples(self) -> int:
        """Images in the split."""

    @property
    def image_size(self) -> int:
        """Height and width of what comes out."""

    @property
    def rank_batch(self) -> int:
        """Images in every batch of this rank."""

    def batches(self, epoch: int) -> int:
        """This rank's number of batches in the epoch."""

    def indices(self, epoch: int, batch: int) -> np.ndarray:
        """The (rank_batch,) int64 indices of one batch: those of the files plus `samples` per earlier repetition within
        the epoch, so that each repetition has its own draws; PADDING where there is no image."""

    def geometry(self, epoch: int, indices: np.ndarray, sizes: np.ndarray) -> Geometry:
        """What is done to the images of `indices`, whose stored height, width are `sizes` (n, 2)."""


@lru_cache(maxsize=4)
def permutation(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The (samples,) int64 order of an epoch: sorted by a hash without collisions, so no library's shuffle is in it."""
    order = np.argsort(hashes(seed, epoch, Stream.ORDER, np.arange(samples)), kind="stable")
    order.flags.writeable = False  # the cache hands out one array
    return order


@lru_cache(maxsize=4)
def permutation_without(samples: int, left_out: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """The (samples,) int64 order of an epoch over the files that are left: that of the whole set without those at
    `left_out`, so that an epoch begun with them goes on with nothing lost and nothing twice."""
    if not left_out:
        return permutation(samples, seed, epoch)
    whole = permutation(samples + len(left_out), seed, epoch)
    places = whole[~np.isin(whole, left_out)]
    order = places - np.searchsorted(left_out, places)  # among the files that are left
    order.flags.writeable = False
    return order


def random_crop_boxes(
    sizes: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], uniform: np.ndarray
) -> np.ndarray:
    """Boxes (n, 4) top, left, height, width as torchvision's RandomResizedCrop draws them.

    sizes: (n, 2) height, width; scale: bounds of the share of the area; ratio: bounds of width / height;
    uniform: (n, 22) in [0, 1). The first of ten candidates that fits counts; where none does, the largest central box
    within the ratio.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[:, :_ATTEMPTS])
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * uniform[:, _ATTEMPTS : 2 * _ATTEMPTS])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    rows, chosen = np.arange(len(sizes)), fits.argmax(axis=1)
    found = np.stack([heights[rows, chosen], widths[rows, chosen]], axis=1)
    place = np.floor((sizes - found + 1) * uniform[:, 2 * _ATTEMPTS :])
    central = _largest_within(sizes, ratio)
    any_fits = fits.any(axis=1, keepdims=True)
    size = np.where(any_fits, found, central)
    corner = np.where(any_fits, place, (sizes - central) // 2)
    return np.concatenate([corner, size], axis=1).astype(np.int64)


def _largest_within(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """Height and width (n, 2) of the largest box whose width / height lies in `ratio`, rounded half to even."""
    height, width = sizes[:, 0], sizes[:, 1]
    shape = width / height
    return np.stack(
        [
            np.where(shape < min(ratio), np.rint(width / min(ratio)), height),
            np.where(shape > max(ratio), np.rint(height * max(ratio)), width),
        ],
        axis=1,
    )


def central_geometry(sizes: np.ndarray, image_size: int, crop_ratio: float) -> Geometry:
    """torchvision's Resize(int(image_size / crop_ratio)) and CenterCrop(image_size): the shorter side becomes exactly
    that, the longer one is cut to an integer, the offset is rounded half to even."""
    shorter = int(image_size / crop_ratio)
    short, long = sizes.min(axis=1, keepdims=True), sizes.max(axis=1, keepdims=True)
    size = np.where(sizes == short, shorter, (shorter * long / short).astype(np.int64))
    offset = np.rint((size - image_size) / 2).astype(np.int64)
    whole = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    return Geometry(whole, size, offset, np.zeros(len(sizes), dtype=bool))


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Shuffled training batches, no sample twice in an epoch unless it is repeated on purpose.

    samples: images in the split; left_out: the places of excluded files (data.samples.ImageSet); batch_size: global;
    crop_scale, crop_ratio: bounds of RandomResizedCrop's share of the area and width / height, crop_scale None for the
    evaluation's geometry at eval_crop_ratio; flip: probability.
    repeats: repeated augmentation (Hoffer et al., "Augment Your Batch", 2020): each sample comes this often, with crops
    of its own, and the epoch is as long as before, so that it sees only a part of the samples. The copies are spread
    over the micro-batches of all ranks, as DeiT's and PVT's sampler spreads them over the ranks: with at least
    `repeats` micro-batches none holds a sample twice, so mixup does not mix a sample with itself.
    accumulation: micro-batches of a rank's batch, one after another in `indices`; only repeats above 1 depend on it.
    """

    samples: int
    batch_size: int
    rank: int
    world_size: int
    seed: int
    image_size: int
    crop_scale: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    flip: float
    eval_crop_ratio: float
    repeats: int = 1
    accumulation: int = 1
    left_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_repeats(self.repeats)
        _check_crop_ratio(self.eval_crop_ratio)
        if self.accumulation < 1:
            raise DataError(f"accumulation={self.accumulation} must be at least 1")
        if self.batch_size % self._parts:
            below = max(self.batch_size // self._parts, 1) * self._parts
            steps = f" x {self.accumulation} accumulation steps" if self.accumulation > 1 else ""
            ranks = f"{self.world_size} ranks{steps}"
            raise DataError(f"batch_size={self.batch_size} is not divisible by {ranks}; use {below}")
        if self.batch_size > self.samples:
            raise DataError(f"batch_size={self.batch_size} is larger than the training set; use at most {self.samples}")

    @property
    def _parts(self) -> int:
        """Micro-batches of a global batch."""
        return self.world_size * self.accumulation

    @property
    def rank_batch(self) -> int:
        return self.batch_size // self.world_size

    def batches(self, epoch: int) -> int:  # noqa: ARG002 (every epoch is as long; a plan may say otherwise)
        return self.samples // self.batch_size

    def indices(self, epoch: int, batch: int) -> np.ndarray:
        turn, repetition = np.divmod(batch * self.batch_size + self._places(), self.repeats)
        order = permutation_without(self.samples, self.left_out, self.seed, epoch)
        return order[turn] + self.samples * repetition

    def _places(self) -> np.ndarray:
        """The (rank_batch,) places in the global batch of this rank's images: in a row, or for repeats above 1 every
        `_parts`-th for each micro-batch."""
        if self.repeats == 1:
            return self.rank * self.rank_batch + np.arange(self.rank_batch)
        first = self.rank * self.accumulation + np.arange(self.accumulation)
        return (first[:, None] + np.arange(0, self.batch_size, self._parts)).ravel()

    def geometry(self, epoch: int, indices: np.ndarray, sizes: np.ndarray) -> Geometry:
        flip = uniforms(self.seed, epoch, Stream.FLIP, indices, 1)[:, 0] < self.flip
        if self.crop_scale is None:
            return central_geometry(sizes, self.image_size, self.eval_crop_ratio)._replace(flip=flip)
        uniform = uniforms(self.seed, epoch, Stream.CROP, indices, 2 * _ATTEMPTS + 2)
        box = random_crop_boxes(sizes, self.crop_scale, self.crop_ratio, uniform)
        size = np.full((len(indices), 2), self.image_size)
        return Geometry(box, size, np.zeros_like(size), flip)


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Every sample exactly once, in batches of one fixed size, whatever the number of ranks; epochs do not differ.

    batch_size: per rank. Batch j of the split covers samples j * batch_size onward; rank r of R takes batches r, r + R,
    and so on; the split's last batch is filled up with PADDING.
    """

    samples: int
    batch_size: int
    rank: int
    world_size: int
    image_size: int
    crop_ratio: float

    def __post_init__(self) -> None:
        _check_crop_ratio(self.crop_ratio)

    @property
    def rank_batch(self) -> int:
        return self.batch_size

    def batches(self, epoch: int) -> int:  # noqa: ARG002 (the protocol's signature)
        total = -(-self.samples // self.batch_size)
        return max(0, -(-(total - self.rank) // self.world_size))

    def indices(self, epoch: int, batch: int) -> np.ndarray:  # noqa: ARG002
        first = (batch * self.world_size + self.rank) * self.batch_size
        index = np.arange(first, first + self.batch_size)
        return np.where(index < self.samples, index, PADDING)

    def geometry(self, epoch: int, indices: np.ndarray, sizes: np.ndarray) -> Geometry:  # noqa: ARG002
        return central_geometry(sizes, self.image_size, self.crop_ratio)
