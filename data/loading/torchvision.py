"""The torchvision loader: PIL decodes, torchvision crops, resizes and flips, on the CPU.

The plain twin of the DALI loader: the same samples, crops and flips, pixels up to rounding.
"""

import os
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from cotnet.errors import DataError
from data.loading.decoding import decoded_rgb
from data.loading.plan import Batch, BatchPlan, DecodeDevice, Geometry, Prefetch, all_sizes, of_sizes
from data.loading.workers import Threads, WorkerBatches
from data.sets.image_set import DECODING_ERRORS, ImageSet, damaged


class TorchvisionLoader:
    """A BatchLoader whose worker processes make whole batches."""

    def __init__(
        self,
        image_set: ImageSet,
        plan: BatchPlan,
        *,
        output_device: torch.device,
        interpolation: str,
        threads: Threads,
        prefetch: Prefetch,
        device: DecodeDevice = "auto",
    ) -> None:
        if device == "gpu":
            raise DataError("device=gpu is for DALI, torchvision decodes on the CPU; set loader=dali, or auto")
        self._device = output_device
        dataset = _BatchDataset(image_set, plan, interpolation=InterpolationMode(interpolation))
        pinned = output_device.type == "cuda"
        self._workers = WorkerBatches(dataset, plan.batches, threads=threads, prefetch=prefetch, pinned=pinned)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """As BatchLoader."""
        for batch in self._workers.batches(epoch, first):
            images = [part.to(self._device, non_blocking=True) for part in all_sizes(batch)]
            yield Batch(of_sizes(images), batch.targets.to(self._device, non_blocking=True), batch.indices)

    def close(self) -> None:
        """As BatchLoader."""
        self._workers.close()


class _BatchDataset(Dataset[Batch | DataError]):
    """Whole batches by (epoch, batch), for WorkerBatches."""

    def __init__(self, image_set: ImageSet, plan: BatchPlan, *, interpolation: InterpolationMode) -> None:
        # One array, not a million strings: reference counts would make forked workers copy every page.
        self._files = np.array([os.fsencode(file) for file in image_set.files])
        self._root, self._labels = image_set.root, image_set.labels
        self._plan, self._interpolation = plan, interpolation

    def __getitem__(self, number: tuple[int, int]) -> Batch | DataError:
        epoch, batch = number
        indices = self._plan.indices(epoch, batch)
        sides = self._plan.sides
        # NumPy's memory: the heap grows with torch's, whose freed blocks are too small for the next batch.
        pixels = [torch.from_numpy(np.empty((len(indices), 3, side, side), dtype=np.uint8)) for side in sides]
        if get_worker_info():
            for part in pixels:
                part.share_memory_()  # before it is filled, so that sending does not copy it
        for row, index in enumerate(indices):
            path = self._root / os.fsdecode(self._files[index % len(self._files)])
            try:
                with Image.open(path) as image:
                    size = np.array([[image.height, image.width]])
                    decoded, kind = decoded_rgb(image, path), self._interpolation
                    geometries = self._plan.geometries(epoch, indices[row : row + 1], size)
                    for part, geometry, side in zip(pixels, geometries, sides, strict=True):
                        part[row] = _crop(decoded, geometry, side=side, interpolation=kind)
            except DECODING_ERRORS as error:
                return damaged(path, error)
        targets = np.where(indices < 0, 0, self._labels[indices % len(self._files)])
        return Batch(of_sizes(pixels), torch.from_numpy(targets), torch.from_numpy(indices))


def _crop(image: Image.Image, geometry: Geometry, *, side: int, interpolation: InterpolationMode) -> torch.Tensor:
    """(3, side, side) uint8 pixels of an RGB image under a geometry of one row."""
    box, size, offset = (part[0].tolist() for part in geometry[:3])
    image = functional.resized_crop(image, *box, size=size, interpolation=interpolation, antialias=True)
    image = functional.crop(image, *offset, side, side)
    if geometry.flip[0]:
        image = functional.horizontal_flip(image)
    return functional.pil_to_tensor(image)
