"""The loaders that ours is compared with, each built as in its own documentation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class LoaderTask:
    """What every loader does; all bilinear, antialiased, normalised.

    `name`: plain (random crop, flip), randaug (plain and timm's RandAugment m9 n2 mstd0.5), val (resize, central crop).
    """

    name: str
    batch_size: int
    image_size: int
    workers: int
    device: torch.device


class PeerLoader:
    """Epochs of batches of a data loader that gives (images, targets)."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._loader, self._device = loader, device

    def epoch(self, epoch: int) -> Iterator[torch.Tensor]:  # noqa: ARG002 - it draws its own numbers
        for images, _ in self._loader:
            yield images.to(self._device, non_blocking=True)

    def close(self) -> None:
        del self._loader  # ends the workers


def torchvision_loader(train: Path, task: LoaderTask, *, tensors: bool) -> PeerLoader:
    """ImageFolder with v2 transforms; images from decode_image, or PIL's."""
    if task.name == "val":
        steps = [v2.Resize(int(task.image_size / 0.875), antialias=True), v2.CenterCrop(task.image_size)]
    else:
        steps = [v2.RandomResizedCrop(task.image_size, antialias=True), v2.RandomHorizontalFlip()]
    steps += [v2.RandAugment(2, 9)] if task.name == "randaug" else []
    steps += [] if tensors else [v2.PILToTensor()]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    decoder = {"loader": lambda path: decode_image(path, "RGB")} if tensors else {}
    loader: DataLoader[Any] = DataLoader(
        ImageFolder(train, transform, **decoder),
        task.batch_size,
        shuffle=task.name != "val",
        num_workers=task.workers,
        persistent_workers=True,
        drop_last=task.name != "val",
        pin_memory=task.device.type == "cuda",
    )
    return PeerLoader(loader, task.device)


def timm_loader(train: Path, task: LoaderTask) -> PeerLoader:
    """timm's create_dataset and create_loader, whose prefetcher normalises whole batches."""
    from timm.data import create_dataset, create_loader

    training = task.name != "val"
    options = {"auto_augment": "rand-m9-n2-mstd0.5"} if task.name == "randaug" else {"color_jitter": 0.0}
    loader = create_loader(
        create_dataset("", root=str(train)),
        (3, task.image_size, task.image_size),
        task.batch_size,
        is_training=training,
        interpolation="bilinear",
        train_crop_mode="rrc" if training else None,
        crop_pct=0.875,
        num_workers=task.workers,
        persistent_workers=True,
        pin_memory=task.device.type == "cuda",
        device=task.device,
        **options,
    )
    return PeerLoader(loader, task.device)


PEERS: Final[dict[str, Callable[[Path, LoaderTask], PeerLoader]]] = {
    "torchvision PIL": lambda train, task: torchvision_loader(train, task, tensors=False),
    "torchvision tensor decode": lambda train, task: torchvision_loader(train, task, tensors=True),
    **({"timm": timm_loader} if find_spec("timm") else {}),
}
