"""Training images that grow over the epochs: a loader of the same protocol around loaders of one size each."""

from collections.abc import Callable, Iterator
from typing import Protocol

from data.order import Batch
from data.samples import DataError


class Loader(Protocol):
    """What data.dali.DaliLoader and data.torchvision.TorchvisionLoader are."""

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch, from batch `first` on."""

    def close(self) -> None:
        """End all threads and processes."""


def ramp(epoch: int, *, start: int, end: int, begin: float, until: float, multiple: int = 32) -> int:
    """The size in pixels at an epoch: `start` up to epoch `begin`, `end` from epoch `until` on, linear between.

    Sizes in between are multiples of `multiple`, which suits a net's strides and keeps the number of sizes small (as
    FFCV's recipe does: 160 to 192 px).
    """
    if not 0 < start <= end or not 0 <= begin < until or multiple < 1:
        raise DataError(
            f"image size {start} to {end} over the epochs {begin:g} to {until:g} does not grow; check the numbers"
        )
    if epoch <= begin:
        return start
    if epoch >= until:
        return end
    linear = start + (end - start) * (epoch - begin) / (until - begin)
    return min(max(round(linear / multiple) * multiple, start), end)


class ProgressiveLoader:
    """Opens `make(size)` for each new size and closes the one before; sizes: the size at an epoch.

    Order, crops' places and flips do not depend on the size, so that continuing works as with one size.
    """

    def __init__(self, make: Callable[[int], Loader], sizes: Callable[[int], int]) -> None:
        self._make, self._sizes = make, sizes
        self._size: int | None = None
        self._loader: Loader | None = None

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch, from batch `first` on, at the epoch's size."""
        size = self._sizes(epoch)
        if self._loader is None or size != self._size:
            self.close()
            self._size, self._loader = size, self._make(size)
        yield from self._loader.batches(epoch, first)

    def close(self) -> None:
        """Close the loader that is open."""
        if self._loader is not None:
            self._loader.close()
        self._loader = None
