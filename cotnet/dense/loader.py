"""The loader of detection and segmentation: executes a plan; worker processes make whole batches."""

import os
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from cotnet.dense.ade20k import LabelMapSet, decoded
from cotnet.dense.coco import CocoSet, Objects
from cotnet.dense.plans import DenseEvaluationPlan, DensePlan, View
from cotnet.errors import DataError
from data.loading.plan import Prefetch
from data.loading.workers import Threads, WorkerBatches
from data.sets.image_set import IGNORED

PHOTOMETRIC: Final[dict[str, Callable[[torch.Tensor, float], torch.Tensor]]] = {
    "brightness": lambda image, change: (image.to(torch.int16) + round(change)).clamp_(0, 255).to(torch.uint8),
    "contrast": functional.adjust_brightness,  # mmsegmentation's contrast is this factor of the pixels
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}

Example = dict[str, torch.Tensor]


class DenseBatch(NamedTuple):
    """n images."""

    images: list[torch.Tensor]  # n of (3, h, w) uint8 RGB, on the device; sizes differ
    targets: list[Example]  # n, on the device: boxes, labels, masks, or classes; in evaluation classes or nothing
    indices: torch.Tensor  # (n,) int64, on the CPU: indices into the set's files


class _PackedBatch(NamedTuple):
    """A batch with one tensor for each name: few pieces of shared memory, few copies to the device."""

    parts: dict[str, torch.Tensor]  # the n parts of a name one after the other
    shapes: dict[str, list[tuple[int, ...]]]  # of the n parts
    indices: torch.Tensor


class DenseLoader:
    """Batches of an image set by a plan. mean: per channel, of images in [0, 1]; what crops are padded with."""

    def __init__(
        self,
        image_set: CocoSet | LabelMapSet,
        plan: DensePlan | DenseEvaluationPlan,
        *,
        output_device: torch.device,
        mean: Sequence[float],
        threads: Threads,
        prefetch: Prefetch,
    ) -> None:
        self._device = output_device
        dataset = _DenseBatches(image_set, plan, fill=[round(255 * part) for part in mean])
        pinned = output_device.type == "cuda"
        self._workers = WorkerBatches(dataset, plan.batches, threads=threads, prefetch=prefetch, pinned=pinned)

    def batches(self, epoch: int, first: int = 0) -> Iterator[DenseBatch]:
        """This rank's batches of an epoch, from batch `first` on. Raises DataError for a damaged image."""
        return (_unpack(packed, self._device) for packed in self._workers.batches(epoch, first))

    def close(self) -> None:
        """End all worker processes. The loader cannot be used afterwards."""
        self._workers.close()


class _DenseBatches(Dataset[_PackedBatch | DataError]):
    """Whole batches by (epoch, batch), for WorkerBatches."""

    def __init__(
        self, image_set: CocoSet | LabelMapSet, plan: DensePlan | DenseEvaluationPlan, *, fill: list[int]
    ) -> None:
        self._set, self._plan, self._fill = image_set, plan, fill
        self._files = np.array([os.fsencode(file) for file in image_set.files])  # shared by forked workers

    def __getitem__(self, number: tuple[int, int]) -> _PackedBatch | DataError:
        indices = self._plan.indices(*number)
        try:
            return _pack([self._example(number[0], index) for index in indices.tolist()], torch.tensor(indices))
        except DataError as error:
            return error

    def _example(self, epoch: int, index: int) -> Example:
        """`image` (h, w, 3) and the entries of its target."""
        path = self._set.root / os.fsdecode(self._files[index])
        pixels, plan = decoded(path, rgb=True), self._plan
        height, width = pixels.shape[:2]
        view = plan.view(epoch, index, (height, width))
        target: Example = {}
        if isinstance(self._set, LabelMapSet):
            classes = self._set.classes(index)
            _require_size(path, (height, width), classes.shape)
            if isinstance(plan, DensePlan):
                view, classes = calm_crop(classes, view, share=plan.augmentation.crop_max_share)
            target["classes"] = torch.from_numpy(classes)
        else:
            _require_size(path, (height, width), self._set.sizes[index].tolist())
            if isinstance(plan, DensePlan):
                target = moved_objects(self._set.truth(index), view, size=(height, width))
        image = moved_image(torch.from_numpy(pixels).permute(2, 0, 1), view, fill=self._fill)
        return target | {"image": image.permute(1, 2, 0)}


def _require_size(path: Path, size: Sequence[int], truth: Sequence[int]) -> None:
    if [*size] != [*truth]:
        sides = "the image is {}x{} (height x width), but {}x{} in its truth".format(*size, *truth)
        raise DataError(f"{path}: {sides}; copy both again")


def moved_image(image: torch.Tensor, view: View, *, fill: Sequence[int]) -> torch.Tensor:
    """(3, *view.output) of an image (3, h, w) uint8; padded with `fill` after its colours are changed."""
    image = functional.resize(image, [*view.size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    image = functional.horizontal_flip(image) if view.flip else image
    (top, left), (height, width) = view.offsets[0], view.output
    image = image[:, top : top + height, left : left + width]
    for name, factor in view.photometric:
        image = PHOTOMETRIC[name](image, factor)
    bottom, right = height - image.shape[1], width - image.shape[2]
    return functional.pad(image, [0, 0, right, bottom], fill=[*fill]) if bottom or right else image


def moved_maps(maps: np.ndarray, view: View, *, fill: int) -> np.ndarray:
    """(..., *view.output) uint8 of maps (..., h, w): what lies under the middles of pixels; `fill` in the padding."""
    middles = [(2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(view.size, maps.shape[-2:], strict=True)]
    (top, left), (height, width) = view.offsets[0], view.output
    rows, columns = middles[0][top : top + height], middles[1][:: -1 if view.flip else 1][left : left + width]
    moved = np.full((*maps.shape[:-2], height, width), fill, np.uint8)
    maps.take(columns, -1).take(rows, -2, out=moved[..., : len(rows), : len(columns)], mode="clip")  # no buffer
    return moved


def calm_crop(classes: np.ndarray, view: View, *, share: float) -> tuple[View, np.ndarray]:
    """The view with one crop, and the map (h, w) uint8 in it.

    The first crop in which no class has more than the share, else the last one. Ignored pixels do not count, as in
    mmsegmentation's RandomCrop.
    """
    for offset in view.offsets:
        view = view._replace(offsets=(offset,))
        part = moved_maps(classes, view, fill=IGNORED)
        counts = np.bincount(part.ravel(), minlength=IGNORED + 1)[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() <= share * counts.sum():
            break
    return view, part


def moved_objects(truth: Objects, view: View, *, size: tuple[int, int]) -> Example:
    """`boxes`, `labels` and, if read, `masks` (n, *view.output) of the objects of an image of this size (h, w).

    Boxes are cut at the crop's border. Those with a side below one pixel, or no pixel in the mask, are left out.
    """
    (height, width), (top, left) = view.size, view.offsets[0]
    boxes = truth.boxes * np.array([width / size[1], height / size[0]] * 2, np.float32)
    if view.flip:
        boxes = np.array([width, 0, width, 0], np.float32) + boxes[:, [2, 1, 0, 3]] * np.array([-1, 1] * 2, np.float32)
    boxes = np.clip(boxes - np.array([left, top] * 2, np.float32), 0, np.array(view.output[::-1] * 2, np.float32))
    keep = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    found = {"boxes": boxes, "labels": truth.labels}
    if truth.masks is not None:
        found["masks"] = moved_maps(truth.masks, view, fill=0)
        keep &= found["masks"].any(axis=(1, 2))
    return {name: torch.from_numpy(part[keep]) for name, part in found.items()}


def _pack(examples: list[Example], indices: torch.Tensor) -> _PackedBatch:
    shapes = {name: [tuple(example[name].shape) for example in examples] for name in examples[0]}
    parts = {name: torch.cat([example[name].flatten() for example in examples]) for name in shapes}
    return _PackedBatch(parts, shapes, indices)


def _unpack(packed: _PackedBatch, device: torch.device) -> DenseBatch:
    moved: dict[str, list[torch.Tensor]] = {}
    for name, shapes in packed.shapes.items():
        parts = packed.parts[name].to(device, non_blocking=True).split([prod(shape) for shape in shapes])
        moved[name] = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    images = [image.permute(2, 0, 1) for image in moved.pop("image")]
    if "classes" in moved:
        moved["classes"] = [classes.long() for classes in moved["classes"]]
    targets = [{name: parts[place] for name, parts in moved.items()} for place in range(len(images))]
    return DenseBatch(images, targets, packed.indices)
