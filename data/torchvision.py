"""The torchvision loader: PIL decodes, torchvision crops, resizes and flips what the plan has drawn, on the CPU.

The plain twin of the DALI loader: the same samples, crops and flips, pixels up to rounding.
"""

import gc
import os
import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from data.order import Batch, Geometry, Plan, check_loader
from data.samples import DataError, ImageSet, damaged

_INTERPOLATIONS: Final = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


class TorchvisionLoader:
    """Executes a plan with PIL and torchvision in worker processes, each making whole batches.

    device: where the batches go. interpolation: bilinear or bicubic, both antialiased. threads: worker processes, 0 for
    none. prefetch: batches made ahead by each.
    """

    def __init__(
        self, image_set: ImageSet, plan: Plan, *, device: torch.device, interpolation: str, threads: int, prefetch: int
    ) -> None:
        check_loader(interpolation, threads, prefetch, least_threads=0)
        self._plan, self._device = plan, device
        self._order = _BatchNumbers()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # `threads` is the user's choice
            self._loader: DataLoader[Batch | DataError] = DataLoader(
                _Batches(image_set, plan, _INTERPOLATIONS[interpolation]),
                batch_size=None,
                sampler=self._order,
                num_workers=threads,
                prefetch_factor=prefetch if threads else None,
                persistent_workers=threads > 0,
                pin_memory=device.type == "cuda",
                worker_init_fn=_start_worker,
                multiprocessing_context="fork" if threads else None,  # a spawned rank would spawn: seconds per worker
            )
            if threads:
                gc.collect()  # before the fork; see _start_worker
            self._iterator: Iterator[Batch | DataError] = iter(self._loader)  # an empty epoch, which starts the workers

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch, from batch `first` on. Raises DataError for a damaged image.

        One epoch at a time: starting another one ends the last.
        """
        self._order.numbers = [(epoch, batch) for batch in range(first, self._plan.batches(epoch))]
        self._iterator = iter(self._loader)
        for _ in self._order.numbers:
            batch = next(self._iterator)  # held by no local name, so that close() can end the workers
            if isinstance(batch, DataError):
                raise batch
            images, targets = (part.to(self._device, non_blocking=True) for part in (batch.images, batch.targets))
            yield Batch(images, targets, batch.indices)

    def close(self) -> None:
        """Stop all worker processes; the loader is of no use afterwards."""
        del self._iterator, self._loader


def _start_worker(number: int) -> None:  # noqa: ARG001 (the DataLoader's signature)
    gc.freeze()  # garbage of the parent may be a pipeline, whose destructor waits for threads that no fork has


class _BatchNumbers(Sampler[tuple[int, int]]):
    """The (epoch, batch) pairs to make, set before each epoch."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


class _Batches(Dataset[Batch | DataError]):
    """Whole batches by (epoch, batch). An error is returned: raised, a worker would bury it in its own traceback."""

    def __init__(self, image_set: ImageSet, plan: Plan, interpolation: InterpolationMode) -> None:
        # One array, not a million strings: forked workers would copy every page whose reference counts they touch.
        self._files = np.array([os.fsencode(file) for file in image_set.files])
        self._root, self._labels = image_set.root, image_set.labels
        self._plan, self._interpolation = plan, interpolation

    def __getitem__(self, number: tuple[int, int]) -> Batch | DataError:
        epoch, batch = number
        indices = self._plan.indices(epoch, batch)
        side = self._plan.image_size
        # NumPy's memory: the holes that freed blocks of torch leave are too small for the next, and the heap grows.
        pixels = torch.from_numpy(np.empty((len(indices), 3, side, side), dtype=np.uint8))
        if get_worker_info():
            pixels.share_memory_()  # before it is filled: sent, it is not copied again
        for row, index in enumerate(indices):
            path = self._root / os.fsdecode(self._files[index % len(self._files)])
            try:
                with Image.open(path) as image:
                    size = np.array([[image.height, image.width]])
                    geometry = self._plan.geometry(epoch, indices[row : row + 1], size)
                    pixels[row] = _crop(image.convert("RGB"), geometry, side, self._interpolation)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                return damaged(path, error)
        targets = np.where(indices < 0, 0, self._labels[indices % len(self._files)])
        return Batch(pixels, torch.from_numpy(targets), torch.from_numpy(indices))


def _crop(image: Image.Image, geometry: Geometry, side: int, interpolation: InterpolationMode) -> torch.Tensor:
    """The (3, side, side) uint8 pixels of one RGB image under a geometry of one row."""
    box, size, offset = (part[0].tolist() for part in geometry[:3])
    image = functional.resized_crop(image, *box, size=size, interpolation=interpolation, antialias=True)
    image = functional.crop(image, *offset, side, side)
    if geometry.flip[0]:
        image = functional.horizontal_flip(image)
    return functional.pil_to_tensor(image)
