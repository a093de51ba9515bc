"""Which images, sizes, crops, flips and colours at (seed, epoch, position): pure functions, as data/loading/plan.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from cotnet.dense.settings import DenseAugmentation
from data.loading.plan import permutation
from data.loading.random import Stream, uniforms

CANDIDATES: Final = 10  # crops to choose from


class View(NamedTuple):
    """What happens to an image, in this order. Pixels, height before width."""

    size: tuple[int, int]  # to resize the whole image to, antialiased
    flip: bool  # mirror left-right
    offsets: tuple[tuple[int, int], ...]  # top, left of the crop; several: the first that serves is taken, or the last
    output: tuple[int, int]  # of the crop; where the image ends earlier, it is padded at the bottom and the right
    photometric: tuple[tuple[str, float], ...]  # changes of colour, by name (loader.PHOTOMETRIC), with their factors


def resized(size: Sequence[int], short_side: float, *, max_side: float) -> tuple[int, int]:
    """Height and width with this shorter side, or with this longer side if that is smaller; a half is rounded up.

    As mmcv's imrescale, and detectron2's ResizeShortestEdge but for exact halves, which that one may round down.
    """
    factor = min(short_side / min(size), max_side / max(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def aspect_order(order: np.ndarray, wide: np.ndarray, *, group: int) -> np.ndarray:
    """(n,) int64: `order` with groups of images that are all wide, or all high.

    A group stands where its first image stood, and what fills no group at the end. wide: (samples,) bool.
    """
    kinds, key = wide[order], np.empty(len(order), np.int64)
    for kind in (False, True):
        places = np.flatnonzero(kinds == kind)
        first = np.arange(len(places)) // group * group
        key[places] = np.where(first + group <= len(places), places[first], len(order) + kind)
    return order[np.argsort(key, kind="stable")]


@dataclass(frozen=True, kw_only=True, eq=False)
class DensePlan:
    """Shuffled training batches, each image at most once in an epoch; the incomplete last batch is left out.

    batch_size is a multiple of world_size. The global batches do not depend on the number of ranks.
    """

    augmentation: DenseAugmentation
    samples: int  # images in the set
    sizes: np.ndarray | None  # (samples, 2) height, width, for the groups; None: no groups
    batch_size: int  # of all ranks
    rank: int
    world_size: int
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def batches(self, epoch: int) -> int:  # noqa: ARG002 (every epoch has as many)
        """Number of this rank's batches in the epoch."""
        return self.samples // self.batch_size

    def indices(self, epoch: int, batch: int) -> np.ndarray:
        """(batch_size / world_size,) int64: images of this rank."""
        if epoch not in self._orders:
            order, group = permutation(self.samples, self.seed, epoch), self.augmentation.aspect_group
            if group > 1 and self.sizes is not None:
                order = aspect_order(order, self.sizes[:, 1] > self.sizes[:, 0], group=group)
            self._orders.clear()  # only the newest is kept
            self._orders[epoch] = order
        share = self.batch_size // self.world_size
        first = batch * self.batch_size + self.rank * share
        return self._orders[epoch][first : first + share]

    def view(self, epoch: int, index: int, size: Sequence[int]) -> View:
        """What happens to an image whose file has this height and width."""
        given, image = self.augmentation, np.array([index])
        uniform, jitter = uniforms(self.seed, epoch, Stream.RESIZE, image, 2)[0].tolist()
        choices = range(min(given.short_sides), max(given.short_sides) + 1) if given.between else given.short_sides
        low, high = given.jitter
        factor = low + (high - low) * jitter
        short_side = choices[int(uniform * len(choices))]
        height, width = resized(size, short_side * factor, max_side=given.max_side * factor)
        output = (given.crop, given.crop) if given.crop else (height, width)
        room = np.maximum(0, np.subtract((height, width), output))
        count = CANDIDATES if given.crop_max_share < 1 else 1
        corners = uniforms(self.seed, epoch, Stream.CROP, image, 2 * count).reshape(-1, 2)
        offsets = tuple((top, left) for top, left in np.floor(corners * (room + 1)).astype(int).tolist())
        flip = bool(uniforms(self.seed, epoch, Stream.FLIP, image, 1)[0, 0] < given.flip)
        return View(
            (height, width), flip, offsets, output, self._photometric(epoch, image) if given.photometric else ()
        )

    def _photometric(self, epoch: int, image: np.ndarray) -> tuple[tuple[str, float], ...]:
        """SSD's distortion (Liu et al., 2016, section 3.6), as mmsegmentation has it: each with probability 1/2."""
        chance, factor = uniforms(self.seed, epoch, Stream.PHOTOMETRIC, image, 10).reshape(2, 5)
        turns = 2 * factor - 1  # in [-1, 1)
        brightness, contrast = ("brightness", 32 * turns[0]), ("contrast", 1 + turns[1] / 2)
        saturation, hue = ("saturation", 1 + turns[2] / 2), ("hue", turns[3] / 10)
        changes = [brightness, contrast, saturation, hue]
        chosen = [(name, float(value)) for (name, value), drawn in zip(changes, chance, strict=False) if drawn < 0.5]
        if chance[4] < 0.5:  # contrast comes last, not second
            chosen.sort(key=lambda change: change[0] == "contrast")
        return tuple(chosen)


@dataclass(frozen=True, kw_only=True)
class DenseEvaluationPlan:
    """Every image exactly once. Batch j holds images j * batch_size onward; rank r of R takes batches r, r + R, ..."""

    samples: int
    batch_size: int  # of a rank
    rank: int
    world_size: int
    short_side: int  # pixels
    max_side: int
    multiple: int  # sides are rounded up to one of these: 32 as mmsegmentation's AlignResize, 1 for boxes

    def batches(self, epoch: int) -> int:  # noqa: ARG002 (all epochs are the same)
        """As DensePlan."""
        total = -(-self.samples // self.batch_size)
        return max(0, -(-(total - self.rank) // self.world_size))

    def indices(self, epoch: int, batch: int) -> np.ndarray:  # noqa: ARG002
        """As DensePlan; the last batch may be smaller."""
        first = (batch * self.world_size + self.rank) * self.batch_size
        return np.arange(first, min(first + self.batch_size, self.samples))

    def view(self, epoch: int, index: int, size: Sequence[int]) -> View:  # noqa: ARG002
        """As DensePlan."""
        sides = resized(size, self.short_side, max_side=self.max_side)
        height, width = (-(-side // self.multiple) * self.multiple for side in sides)
        return View((height, width), flip=False, offsets=((0, 0),), output=(height, width), photometric=())
