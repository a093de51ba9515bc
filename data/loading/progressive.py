"""Progressive resizing: training images grow over the epochs."""

from collections.abc import Callable, Iterator

from cotnet.errors import DataError
from data.loading.plan import Batch, BatchLoader


def ramp(epoch: int, *, start: int, end: int, begin: float, until: float, multiple: int = 32) -> int:
    """Image size in pixels: `start` up to epoch `begin`, `end` from epoch `until` on, linear between.

    Sizes in between are multiples of `multiple`, as in FFCV's recipe (160 to 192 px): few sizes, which suit a net's
    strides. Raises DataError if the size does not grow.
    """
    if not 0 < start <= end or not 0 <= begin < until or multiple < 1:
        raise DataError(
            f"image size {start} to {end} over the epochs {begin:g} to {until:g} does not grow; give a size of at most "
            f"{end}, the epoch from which it grows and a later one"
        )
    if epoch <= begin:
        return start
    if epoch >= until:
        return end
    linear = start + (end - start) * (epoch - begin) / (until - begin)
    return min(max(round(linear / multiple) * multiple, start), end)


class ProgressiveLoader:
    """A BatchLoader that opens `make(size)` for each new size of `sizes(epoch)` and closes the loader before it.

    Order, crop places and flips do not depend on the size, so a run continues as with one size.
    """

    def __init__(self, make: Callable[[int], BatchLoader], sizes: Callable[[int], int]) -> None:
        self._make, self._sizes = make, sizes
        self._open: dict[int, BatchLoader] = {}  # at most one, by its size

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """As BatchLoader, at the epoch's size."""
        size = self._sizes(epoch)
        if size not in self._open:
            self.close()
            self._open[size] = self._make(size)
        yield from self._open[size].batches(epoch, first)

    def close(self) -> None:
        """As BatchLoader."""
        while self._open:
            self._open.popitem()[1].close()
