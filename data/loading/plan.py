"""Which sample, crop box and flip at (seed, epoch, position): pure functions, and the two plans built on them.

A loader only executes a plan. So both loaders give the same crops, a run continues on any number of ranks, and a
loader's whole state is (epoch, batch).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import torch

from cotnet.settings import Setting
from data.loading.random import Stream, hashes, uniforms

PADDING: Final = -1  # index of an entry that only fills a batch
ATTEMPTS: Final = 10  # candidates for a box, as in torchvision's RandomResizedCrop and RandomErasing
CROP_UNIFORMS: Final = 2 * ATTEMPTS + 2


class Batch(NamedTuple):
    """n images of size S."""

    images: torch.Tensor  # (n, 3, S, S) uint8 RGB, on the device; a tuple of these if the plan has several sizes
    targets: torch.Tensor  # (n,) int64, on the device; 0 for padding
    indices: torch.Tensor  # (n,) int64, on the CPU: plan indices; the file index is `index % len(files)`


def all_sizes(batch: Batch) -> tuple[torch.Tensor, ...]:
    """The images at each size."""
    return (batch.images,) if isinstance(batch.images, torch.Tensor) else tuple(batch.images)


def of_sizes(images: Sequence[torch.Tensor]) -> Any:
    """`images` of a Batch: a tuple for several sizes."""
    return tuple(images) if len(images) > 1 else images[0]


DecodeDevice = Annotated[
    Literal["auto", "cpu", "gpu"],
    Setting(
        "where images are decoded: `cpu`, `gpu` (DALI only), or `auto`: DALI on the GPU if there is one, else the CPU"
    ),
]
Prefetch = Annotated[int, Setting("batches made ahead; torchvision: by each process", least=1, most=1000)]


class BatchLoader(Protocol):
    """Executes a plan. DaliLoader and TorchvisionLoader have the same arguments:

    image_set, plan: the files, and what to do with them.
    output_device: where images and targets go.
    interpolation: bilinear or bicubic, antialiased.
    threads, prefetch, device: as each loader declares them.
    """

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from batch `first` on. A new call ends the previous epoch.

        Raises DataError for a damaged image.
        """

    def close(self) -> None:
        """End all threads and processes. The loader cannot be used afterwards."""


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device. Pinned, because a copy from pageable memory makes the host wait for the GPU."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@lru_cache(maxsize=4)
def permutation(samples: int, seed: int, epoch: int, left_out: tuple[int, ...] = ()) -> np.ndarray:
    """(samples,) int64: the order of an epoch, sorted by a hash, so it depends on no library's shuffle.

    left_out: positions in the full set of excluded files. The order is the full set's without them, so a run continues
    in the middle of an epoch: no image is lost and none comes twice.
    """
    order = np.argsort(hashes(seed, epoch, Stream.ORDER, np.arange(samples + len(left_out))), kind="stable")
    if left_out:
        order = order[~np.isin(order, left_out)]
        order = order - np.searchsorted(left_out, order)
    order.flags.writeable = False  # shared through the cache
    return order


class Geometry(NamedTuple):
    """What happens to n images, in this order. All int64, in pixels, height before width."""

    box: np.ndarray  # (n, 4): top, left, height, width of the region to decode
    size: np.ndarray  # (n, 2): height, width to resize the region to, antialiased
    offset: np.ndarray  # (n, 2): top, left of the crop of (image_size, image_size)
    flip: np.ndarray  # (n,) bool: whether to mirror left-right


def random_crop_boxes(
    sizes: np.ndarray, scale: tuple[float, float], *, ratio: tuple[float, float], uniform: np.ndarray
) -> np.ndarray:
    """(n, 4) int64 top, left, height, width, distributed as torchvision's RandomResizedCrop draws them.

    sizes: (n, 2) height, width. scale: bounds of the share of the area. ratio: bounds of width / height. uniform:
    (n, CROP_UNIFORMS) in [0, 1). The first of ten candidates that fits, or the largest central box within the ratio.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    widths, heights = candidates(height * width, uniform, share=scale, ratio=ratio)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    rows, chosen = np.arange(len(sizes)), fits.argmax(axis=1)
    found = np.stack([heights[rows, chosen], widths[rows, chosen]], axis=1)
    corner = np.floor((sizes - found + 1) * uniform[:, 2 * ATTEMPTS :])
    narrow, wide = width / height < min(ratio), width / height > max(ratio)
    largest_height = np.where(narrow, np.rint(width / min(ratio)), height)  # half to even
    largest_width = np.where(wide, np.rint(height * max(ratio)), width)
    central = np.concatenate([largest_height, largest_width], axis=1)
    any_fits = fits.any(axis=1, keepdims=True)
    size = np.where(any_fits, found, central)
    corner = np.where(any_fits, corner, (sizes - central) // 2)
    return np.concatenate([corner, size], axis=1).astype(np.int64)


def candidates(
    area: np.ndarray | int, uniform: np.ndarray, *, share: tuple[float, float], ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Sides (n, ATTEMPTS) of boxes with a share of the area, uniform within bounds, and with first / second side within
    `ratio`, uniform in its logarithm."""
    areas = area * (share[0] + (share[1] - share[0]) * uniform[:, :ATTEMPTS])
    low, high = np.log(ratio)
    ratios = np.exp(low + (high - low) * uniform[:, ATTEMPTS : 2 * ATTEMPTS])
    return np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))


def central_geometry(sizes: np.ndarray, image_size: int, *, crop_ratio: float) -> Geometry:
    """torchvision's Resize(int(image_size / crop_ratio)) and CenterCrop(image_size).

    The shorter side becomes exactly that, the longer one is cut to an integer, the offset is rounded half to even.
    """
    shorter = int(image_size / crop_ratio)
    short, long = sizes.min(axis=1, keepdims=True), sizes.max(axis=1, keepdims=True)
    size = np.where(sizes == short, shorter, (shorter * long / short).astype(np.int64))
    offset = np.rint((size - image_size) / 2).astype(np.int64)
    box = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    return Geometry(box, size, offset, np.zeros(len(sizes), dtype=bool))


@dataclass(frozen=True, kw_only=True)
class _Plan(ABC):
    """What both plans know."""

    samples: int  # images in the split
    batch_size: int  # of all ranks in training, per rank in evaluation
    rank: int
    world_size: int
    image_size: int
    more_sizes: tuple[int, ...] = ()  # each image is also made at these
    crop_ratio: float  # of the evaluation's geometry, which crop_scale=None takes in training

    @property
    def sides(self) -> tuple[int, ...]:
        """All sizes, in pixels."""
        return (self.image_size, *self.more_sizes)

    @abstractmethod
    def geometry(self, epoch: int, indices: np.ndarray, sizes: np.ndarray) -> Geometry:
        """What happens to the images `indices`, whose stored height, width are `sizes` (n, 2)."""

    def geometries(self, epoch: int, indices: np.ndarray, sizes: np.ndarray) -> list[Geometry]:
        """The geometry at each size."""
        if not self.more_sizes:
            return [self.geometry(epoch, indices, sizes)]
        return [replace(self, image_size=side).geometry(epoch, indices, sizes) for side in self.sides]


@dataclass(frozen=True, kw_only=True)
class TrainPlan(_Plan):
    """Shuffled training batches. No sample comes twice in an epoch, except with repeats.

    batch_size is at most `samples`, and a multiple of world_size x accumulation. crop_scale, flip, repeats: as in
    Augmentation; aspect_ratio: its crop_ratio. left_out: positions of excluded files (ImageSet). accumulation:
    micro-batches of a rank's batch, one after another in `indices`; matters only with repeats.

    Repeats (Hoffer et al., "Augment Your Batch", 2020): copies of a sample go to different micro-batches and ranks, as
    in DeiT's and PVT's sampler. With at least `repeats` micro-batches, mixup never mixes a sample with itself.
    """

    seed: int
    crop_scale: tuple[float, float] | None
    aspect_ratio: tuple[float, float]
    flip: float
    repeats: int
    accumulation: int
    left_out: tuple[int, ...] = ()

    @property
    def rank_batch(self) -> int:
        """Images in each batch of this rank."""
        return self.batch_size // self.world_size

    def batches(self, epoch: int) -> int:  # noqa: ARG002 (every epoch has as many)
        """Number of this rank's batches in the epoch."""
        return self.samples // self.batch_size

    def indices(self, epoch: int, batch: int) -> np.ndarray:
        """(rank_batch,) int64: file index + `samples` x repetition, so that each repetition has its own crop."""
        if self.repeats == 1:
            positions = self.rank * self.rank_batch + np.arange(self.rank_batch)
        else:  # strided micro-batches
            first = self.rank * self.accumulation + np.arange(self.accumulation)
            strided = np.arange(0, self.batch_size, self.world_size * self.accumulation)
            positions = (first[:, None] + strided).ravel()
        turn, repetition = np.divmod(batch * self.batch_size + positions, self.repeats)
        order = permutation(self.samples, self.seed, epoch, self.left_out)
        return order[turn] + self.samples * repetition

    def geometry(self, epoch: int, indices: np.ndarray, sizes: np.ndarray) -> Geometry:
        flip = uniforms(self.seed, epoch, Stream.FLIP, indices, 1)[:, 0] < self.flip
        if self.crop_scale is None:
            return central_geometry(sizes, self.image_size, crop_ratio=self.crop_ratio)._replace(flip=flip)
        uniform = uniforms(self.seed, epoch, Stream.CROP, indices, CROP_UNIFORMS)
        box = random_crop_boxes(sizes, self.crop_scale, ratio=self.aspect_ratio, uniform=uniform)
        size = np.full((len(indices), 2), self.image_size)
        return Geometry(box, size, np.zeros_like(size), flip)


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan(_Plan):
    """Every sample exactly once, in batches of one fixed size, on any number of ranks; methods as in TrainPlan.

    Batch j of the split holds samples j * batch_size onward, the last one with PADDING. Rank r of R takes batches r,
    r + R, ... border: pixels cut off on each side before resizing.
    """

    border: int = 0

    @property
    def rank_batch(self) -> int:
        return self.batch_size

    def batches(self, epoch: int) -> int:  # noqa: ARG002 (all epochs are the same)
        total = -(-self.samples // self.batch_size)
        return max(0, -(-(total - self.rank) // self.world_size))

    def indices(self, epoch: int, batch: int) -> np.ndarray:  # noqa: ARG002
        first = (batch * self.world_size + self.rank) * self.batch_size
        index = np.arange(first, first + self.batch_size)
        return np.where(index < self.samples, index, PADDING)

    def geometry(self, epoch: int, indices: np.ndarray, sizes: np.ndarray) -> Geometry:  # noqa: ARG002
        geometry = central_geometry(sizes - 2 * self.border, self.image_size, crop_ratio=self.crop_ratio)
        geometry.box[:, :2] += self.border
        return geometry


BatchPlan = TrainPlan | EvaluationPlan
