"""What torchvision's reference script for detection does in training, in its default form (pytorch/vision,
references/detection: train.py, engine.py, presets.py, coco_utils.py, group_by_aspect_ratio.py), for `dense.py`.

PIL decodes, pycocotools draws the masks, half of the images are mirrored; images leave the loader as floats of their
own size, grouped by aspect; the model normalises, resizes and pads. Left out: printing, evaluation, checkpoints.
Unlike there the workers live on between epochs, and Faster R-CNN gets no masks: both spare torchvision work.
"""

import bisect
import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.datasets import CocoDetection
from torchvision.models import detection
from torchvision.transforms import functional

from cotnet.errors import DataError

DETECTORS: Final = {"mask_rcnn": detection.maskrcnn_resnet50_fpn, "faster_rcnn": detection.fasterrcnn_resnet50_fpn}
ASPECTS: Final = [2 ** (third / 3) for third in range(-3, 4)]  # bounds of the groups of height / width

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class ReferenceImages(CocoDetection):
    """root/train2017: (image, target), images with an object only. Labels count from 1 in the order of the ids."""

    def __init__(self, root: Path, *, masks: bool) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                super().__init__(root / "train2017", root / "annotations" / "instances_train2017.json")
        except ModuleNotFoundError as error:
            raise DataError("torchvision reads COCO with pycocotools; pip install pycocotools") from error
        self.masks, self.labels = masks, {number: label for label, number in enumerate(sorted(self.coco.cats), 1)}
        self.ids: list[int] = [number for number in sorted(self.coco.imgs) if any(self.objects(number))]

    def objects(self, image: int) -> list[dict[str, Any]]:
        """The annotations of an image, without crowds and what has no area."""
        found = self.coco.loadAnns(self.coco.getAnnIds(imgIds=[image]))
        return [each for each in found if not each["iscrowd"] and min(each["bbox"][2:]) > 0]

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, objects = self._load_image(self.ids[index]), self.objects(self.ids[index])
        boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=image.width)
        boxes[:, 1::2].clamp_(min=0, max=image.height)
        target = {"boxes": boxes, "labels": torch.tensor([self.labels[each["category_id"]] for each in objects])}
        target["image_id"] = torch.tensor(self.ids[index])
        if self.masks:
            target["masks"] = torch.stack([_drawn(each["segmentation"], image) for each in objects])
        if torch.rand(()) < 0.5:
            image = functional.hflip(image)
            boxes[:, 0::2] = image.width - boxes[:, [2, 0]]
            target |= {"masks": target["masks"].flip(-1)} if self.masks else {}
        return functional.convert_image_dtype(functional.pil_to_tensor(image)), target


def _drawn(outline: Any, image: Image.Image) -> Tensor:
    """(h, w) uint8 of polygons, or run lengths."""
    from pycocotools import mask

    runs = mask.frPyObjects(outline, image.height, image.width)
    found = torch.from_numpy(mask.decode(runs))
    return found if found.ndim == 2 else found.any(2).to(torch.uint8)


class ReferenceBatches(Sampler[list[int]]):
    """Shuffled batches of one aspect; those that are left over at the end are not full, and left out. `limit`: batches
    of an epoch at most."""

    def __init__(self, images: ReferenceImages, batch_size: int) -> None:
        sizes = [images.coco.imgs[number] for number in images.ids]
        self.groups = [bisect.bisect_right(ASPECTS, size["height"] / size["width"]) for size in sizes]
        self.batch_size, self.limit = batch_size, len(sizes)

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = {}
        given = 0
        for index in torch.randperm(len(self.groups)).tolist():
            batch = waiting.setdefault(self.groups[index], [])
            batch.append(index)
            if len(batch) == self.batch_size and given < self.limit:
                given += 1
                yield waiting.pop(self.groups[index])


def together(examples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> Batch:
    """The images and the targets of a batch."""
    return [image for image, _ in examples], [target for _, target in examples]


class Reference:
    """torchvision's detector of an image set, its loader, and its training step. lr: of SGD."""

    def __init__(
        self, images: ReferenceImages, head: str, *, batch: int, workers: int, sides: tuple[int, int], lr: float
    ) -> None:
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.batches = ReferenceBatches(images, batch)
        self.loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=self.batches,
            num_workers=workers,
            collate_fn=together,
            persistent_workers=workers > 0,
        )
        given: dict[str, Any] = {"num_classes": 1 + len(images.labels), "min_size": sides[0], "max_size": sides[1]}
        self.model: Any = DETECTORS[head](weights=None, weights_backbone=None, **given).to(self.device)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)

    def read(self, batches: int | None = None) -> Iterator[Batch]:
        """Batches of an epoch, on the device; at most so many."""
        self.batches.limit = batches or len(self.batches.groups)
        for images, targets in self.loader:
            moved = [{name: part.to(self.device) for name, part in target.items()} for target in targets]
            yield [image.to(self.device) for image in images], moved

    def step(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        """One optimizer step, whose losses the host looks at. Raises ArithmeticError if they are not finite."""
        losses = self.model(images, targets)
        total = torch.stack(list(losses.values())).sum()
        if not math.isfinite(total.item()):
            raise ArithmeticError("torchvision's loss is not finite")
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        for loss in losses.values():
            loss.item()
