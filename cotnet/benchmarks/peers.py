"""The loaders that ours is compared with, each as its own documentation builds it."""

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
class Work:
    """What everybody does: `name` is plain (random crop, flip), randaug (and timm's RandAugment m9 n2 mstd0.5), or val
    (resize, central crop); bilinear, antialiased, normalised."""

    name: str
    batch_size: int
    image_size: int
    workers: int
    device: torch.device


class Peer:
    """A data loader of batches (images, targets)."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._loader, self._device = loader, device

    def epoch(self, epoch: int) -> Iterator[torch.Tensor]:  # noqa: ARG002 (they draw as they like)
        for images, _ in self._loader:
            yield images.to(self._device, non_blocking=True)

    def close(self) -> None:
        del self._loader  # ends the workers


def torchvision_pil(train: Path, work: Work) -> Peer:
    """ImageFolder, PIL images, v2 transforms."""
    return _torchvision(ImageFolder(train, [*_geometry(work), v2.PILToTensor(), *_floats()]), work)


def torchvision_tensor(train: Path, work: Work) -> Peer:
    """ImageFolder, decode_image, v2 transforms on tensors."""
    folder = ImageFolder(train, [*_geometry(work), *_floats()], loader=lambda path: decode_image(path, "RGB"))
    return _torchvision(folder, work)


def _geometry(work: Work) -> list[Any]:
    if work.name == "val":
        return [v2.Resize(int(work.image_size / 0.875), antialias=True), v2.CenterCrop(work.image_size)]
    cropped = [v2.RandomResizedCrop(work.image_size, antialias=True), v2.RandomHorizontalFlip()]
    return [*cropped, v2.RandAugment(2, 9)] if work.name == "randaug" else cropped


def _floats() -> list[Any]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def _torchvision(folder: ImageFolder, work: Work) -> Peer:
    folder.transform = v2.Compose(folder.transform)
    loader: DataLoader[Any] = DataLoader(
        folder,
        work.batch_size,
        shuffle=work.name != "val",
        num_workers=work.workers,
        persistent_workers=True,
        drop_last=work.name != "val",
        pin_memory=work.device.type == "cuda",
    )
    return Peer(loader, work.device)


def timm(train: Path, work: Work) -> Peer:
    """timm's create_dataset and create_loader, whose prefetcher normalises whole batches."""
    from timm.data import create_dataset, create_loader

    training = work.name != "val"
    options = {"auto_augment": "rand-m9-n2-mstd0.5"} if work.name == "randaug" else {"color_jitter": 0.0}
    loader = create_loader(
        create_dataset("", root=str(train)),
        (3, work.image_size, work.image_size),
        work.batch_size,
        is_training=training,
        interpolation="bilinear",
        train_crop_mode="rrc" if training else None,
        crop_pct=0.875,
        num_workers=work.workers,
        persistent_workers=True,
        pin_memory=work.device.type == "cuda",
        device=work.device,
        **options,
    )
    return Peer(loader, work.device)


PEERS: Final[dict[str, Callable[[Path, Work], Peer] | None]] = {
    "torchvision PIL": torchvision_pil,
    "torchvision tensor decode": torchvision_tensor,
    "timm": timm if find_spec("timm") else None,
}
