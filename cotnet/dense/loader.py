"""The loader of detection and segmentation: executes a plan; worker processes make whole batches."""

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from cotnet.dense.ade20k import IGNORED, LabelMapSet, decoded
from cotnet.dense.coco import CocoSet, Objects
from cotnet.dense.plans import DenseEvaluationPlan, DensePlan, View
from cotnet.errors import DataError
from cotnet.settings import Setting
from data.loading.plan import Prefetch

PHOTOMETRIC: Final[dict[str, Callable[[torch.Tensor, float], torch.Tensor]]] = {
    "brightness": lambda image, change: (image.to(torch.int16) + round(change)).clamp_(0, 255).to(torch.uint8),
    "contrast": functional.adjust_brightness,  # mmsegmentation's contrast is this factor of the pixels
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}
_ALIGNMENT: Final = 16  # bytes; any type may start there

Example = dict[str, torch.Tensor]


class DenseBatch(NamedTuple):
    """n images."""

    images: list[torch.Tensor]  # n of (3, h, w) uint8 RGB, on the device; sizes differ
    targets: list[Example]  # n, on the device: boxes, labels, masks; classes; in evaluation size (and classes)
    indices: torch.Tensor  # (n,) int64, on the CPU: indices into the set's files


class _PackedBatch(NamedTuple):
    """A batch in one tensor: one piece of shared memory, one copy to the device."""

    bytes: torch.Tensor
    layout: list[dict[str, tuple[torch.dtype, torch.Size, int, int]]]  # of each example: type, shape, start, end
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
        threads: Annotated[int, Setting("worker processes per rank; 0: in the training process", least=0, most=1024)],
        prefetch: Prefetch,
    ) -> None:
        self._plan, self._device = plan, output_device
        self._numbers: list[tuple[int, int]] = []  # (epoch, batch) of each batch of the epoch
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # `threads` is the user's choice
            self._loader: DataLoader[_PackedBatch | DataError] = DataLoader(
                _DenseBatches(image_set, plan, fill=[round(255 * part) for part in mean]),
                batch_size=None,
                sampler=self._numbers,
                num_workers=threads,
                prefetch_factor=prefetch if threads else None,
                persistent_workers=threads > 0,
                pin_memory=output_device.type == "cuda",
                worker_init_fn=lambda _: gc.freeze(),
                multiprocessing_context="fork" if threads else None,
            )
            if threads:  # as in data/loading/torchvision.py
                gc.collect()
            self._iterator: Iterator[_PackedBatch | DataError] = iter(self._loader)

    def batches(self, epoch: int, first: int = 0) -> Iterator[DenseBatch]:
        """This rank's batches of an epoch, from batch `first` on. Raises DataError for a damaged image."""
        self._numbers[:] = ((epoch, batch) for batch in range(first, self._plan.batches(epoch)))
        self._iterator = iter(self._loader)
        for _ in range(len(self._numbers)):
            packed = next(self._iterator)
            if isinstance(packed, DataError):
                raise packed
            yield _unpack(packed, self._device)

    def close(self) -> None:
        """End all worker processes. The loader cannot be used afterwards."""
        del self._iterator, self._loader


class _DenseBatches(Dataset[_PackedBatch | DataError]):
    """Whole batches by (epoch, batch). Errors are returned: a worker would wrap a raised one in its own traceback."""

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
        image, plan = torch.from_numpy(decoded(path, mode="RGB")).permute(2, 0, 1), self._plan
        size = image.shape[1], image.shape[2]
        view = plan.view(epoch, index, size)
        target: Example = {} if isinstance(plan, DensePlan) else {"size": torch.tensor(size)}
        if isinstance(self._set, LabelMapSet):
            classes = torch.from_numpy(self._set.classes(index))[None]
            _require_size(path, size, tuple(classes.shape[1:]))
            if isinstance(plan, DensePlan):
                classes = _resized(classes, view, kind=InterpolationMode.NEAREST_EXACT)
                offset = calm_offset(classes[0].numpy(), view, share=plan.augmentation.crop_max_share)
                view = view._replace(offsets=(offset,))
                classes = _padded(_cropped(classes, view), view, fill=[IGNORED])
            target["classes"] = classes[0]
        else:
            _require_size(path, size, tuple(self._set.sizes[index].tolist()))
            if isinstance(plan, DensePlan):
                target |= moved_objects(self._set.truth(index), view, size=size)
        image = _cropped(_resized(image, view, kind=InterpolationMode.BILINEAR), view)
        for name, factor in view.photometric:
            image = PHOTOMETRIC[name](image, factor)
        return target | {"image": _padded(image, view, fill=self._fill).permute(1, 2, 0)}


def _require_size(path: Path, size: tuple[int, ...], truth: tuple[int, ...]) -> None:
    if size != truth:
        sides = "the image is {}x{} (height x width), but {}x{} in its truth".format(*size, *truth)
        raise DataError(f"{path}: {sides}; copy both again")


def _resized(pixels: torch.Tensor, view: View, *, kind: InterpolationMode) -> torch.Tensor:
    """(C, h, w) at the view's size, mirrored if it says so."""
    pixels = functional.resize(pixels, list(view.size), interpolation=kind, antialias=True)
    return functional.horizontal_flip(pixels) if view.flip else pixels


def _cropped(pixels: torch.Tensor, view: View) -> torch.Tensor:
    (top, left), (height, width) = view.offsets[0], view.output
    return pixels[:, top : top + height, left : left + width]


def _padded(pixels: torch.Tensor, view: View, *, fill: list[int]) -> torch.Tensor:
    bottom, right = view.output[0] - pixels.shape[1], view.output[1] - pixels.shape[2]
    return functional.pad(pixels, [0, 0, right, bottom], fill=fill) if bottom or right else pixels


def calm_offset(classes: np.ndarray, view: View, *, share: float) -> tuple[int, int]:
    """The first crop of the view in which no class of the map (h, w) has more than the share, else the last one.

    Ignored pixels do not count, as in mmsegmentation's RandomCrop.
    """
    for top, left in view.offsets[:-1]:
        part = classes[top : top + view.output[0], left : left + view.output[1]]
        counts = np.bincount(part.ravel(), minlength=IGNORED + 1)[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() <= share * counts.sum():
            return top, left
    return view.offsets[-1]


def moved_objects(truth: Objects, view: View, *, size: tuple[int, int]) -> Example:
    """The objects of an image of this size (h, w) in its view: `boxes`, `labels`, and `masks` if it has some.

    Boxes are cut at the crop's border. Those with a side below one pixel, or no pixel in the mask, are left out.
    """
    (height, width), (top, left) = view.size, view.offsets[0]
    boxes = torch.from_numpy(truth.boxes) * torch.tensor([width / size[1], height / size[0]] * 2)
    if view.flip:
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
    boxes = boxes - torch.tensor([left, top] * 2)
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([view.output[1], view.output[0]] * 2))
    found = {"boxes": boxes, "labels": torch.from_numpy(truth.labels)}
    keep = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
    if truth.masks is not None:
        masks = _resized(torch.from_numpy(truth.masks), view, kind=InterpolationMode.NEAREST_EXACT)
        found["masks"] = _padded(_cropped(masks, view), view, fill=[0])
        keep &= found["masks"].flatten(1).any(dim=1).bool()
    return {name: part[keep] for name, part in found.items()}


def _pack(examples: list[Example], indices: torch.Tensor) -> _PackedBatch:
    layout: list[dict[str, tuple[torch.dtype, torch.Size, int, int]]] = []
    end = 0
    for example in examples:
        layout.append({})
        for name, part in example.items():
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + part.numel() * part.element_size()
            layout[-1][name] = part.dtype, part.shape, start, end
    packed = torch.empty(end, dtype=torch.uint8)
    if get_worker_info():
        packed.share_memory_()  # before it is filled, so that sending does not copy it
    for example, places in zip(examples, layout, strict=True):
        for name, (kind, shape, start, stop) in places.items():
            packed[start:stop].view(kind).view(shape).copy_(example[name])
    return _PackedBatch(packed, layout, indices)


def _unpack(packed: _PackedBatch, device: torch.device) -> DenseBatch:
    moved = packed.bytes.to(device, non_blocking=True)
    targets = [
        {name: moved[start:end].view(kind).view(shape) for name, (kind, shape, start, end) in places.items()}
        for places in packed.layout
    ]
    images = [target.pop("image").permute(2, 0, 1) for target in targets]
    for target in targets:
        if "classes" in target:
            target["classes"] = target["classes"].long()
    return DenseBatch(images, targets, packed.indices)
