"""Which sample, crop box and flip at (seed, epoch, position): pure functions, and the two plans built on them.

A loader only executes a plan. So both loaders give the same crops, a run continues on any number of ranks, and a
loader's whole state is (epoch, batch).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, NamedTuple, Protocol

import numpy as np
import torch

from cotnet.settings import Setting
from data.loading.crops import CROP_UNIFORMS, Geometry, central_geometry, random_crop_boxes
from data.loading.random import Stream, hashes, uniforms

PADDING: Final = -1  # index of an entry that only fills a batch


class Batch(NamedTuple):
    """n images of size S."""

    images: torch.Tensor  # (n, 3, S, S) uint8 RGB, on the device
    targets: torch.Tensor  # (n,) int64, on the device; 0 for padding
    indices: torch.Tensor  # (n,) int64, on the CPU: plan indices; the file index is `index % len(files)`


Prefetch = Annotated[int, Setting("batches made ahead; torchvision: by each process", least=1, most=1000)]


class BatchLoader(Protocol):
    """Executes a plan. DaliLoader and TorchvisionLoader have the same arguments:

    image_set, plan: the files, and what to do with them.
    device: where images and targets go.
    interpolation: bilinear or bicubic, antialiased.
    threads, prefetch: as each loader declares them.
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


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Shuffled training batches. No sample comes twice in an epoch, except with repeats.

    samples: images in the split. left_out: positions of excluded files (ImageSet). batch_size: global, at most samples,
    a multiple of world_size x accumulation. crop_scale, crop_ratio, flip, repeats: as in Augmentation. eval_crop_ratio:
    crop ratio of the evaluation's geometry, which crop_scale=None takes. accumulation: micro-batches of a rank's batch,
    one after another in `indices`; matters only with repeats.

    Repeats (Hoffer et al., "Augment Your Batch", 2020): copies of a sample go to different micro-batches and ranks, as
    in DeiT's and PVT's sampler. With at least `repeats` micro-batches, mixup never mixes a sample with itself.
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
    repeats: int
    accumulation: int
    left_out: tuple[int, ...] = ()

    @property
    def _micro_batches(self) -> int:
        """In a global batch."""
        return self.world_size * self.accumulation

    @property
    def rank_batch(self) -> int:
        """Images in each batch of this rank."""
        return self.batch_size // self.world_size

    def batches(self, epoch: int) -> int:  # noqa: ARG002 (every epoch has as many)
        """Number of this rank's batches in the epoch."""
        return self.samples // self.batch_size

    def indices(self, epoch: int, batch: int) -> np.ndarray:
        """(rank_batch,) int64: file index + `samples` x repetition, so that each repetition has its own crop."""
        turn, repetition = np.divmod(batch * self.batch_size + self._positions(), self.repeats)
        order = permutation(self.samples, self.seed, epoch, self.left_out)
        return order[turn] + self.samples * repetition

    def _positions(self) -> np.ndarray:
        """(rank_batch,): this rank's positions in the global batch; strided micro-batches with repeats, else a row."""
        if self.repeats == 1:
            return self.rank * self.rank_batch + np.arange(self.rank_batch)
        first = self.rank * self.accumulation + np.arange(self.accumulation)
        return (first[:, None] + np.arange(0, self.batch_size, self._micro_batches)).ravel()

    def geometry(self, epoch: int, indices: np.ndarray, sizes: np.ndarray) -> Geometry:
        """What happens to the images `indices`, whose stored height, width are `sizes` (n, 2)."""
        flip = uniforms(self.seed, epoch, Stream.FLIP, indices, 1)[:, 0] < self.flip
        if self.crop_scale is None:
            return central_geometry(sizes, self.image_size, crop_ratio=self.eval_crop_ratio)._replace(flip=flip)
        uniform = uniforms(self.seed, epoch, Stream.CROP, indices, CROP_UNIFORMS)
        box = random_crop_boxes(sizes, self.crop_scale, ratio=self.crop_ratio, uniform=uniform)
        size = np.full((len(indices), 2), self.image_size)
        return Geometry(box, size, np.zeros_like(size), flip)


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Every sample exactly once, in batches of one fixed size, on any number of ranks; methods as in TrainPlan.

    batch_size: per rank. Batch j of the split holds samples j * batch_size onward, the last one with PADDING. Rank r of
    R takes batches r, r + R, ... border: pixels cut off on each side before resizing.
    """

    samples: int
    batch_size: int
    rank: int
    world_size: int
    image_size: int
    crop_ratio: float
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
