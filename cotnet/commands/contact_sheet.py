"""Pictures of what training sees: a grid of images under titles, and a batch after each part of its augmentation."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw

from cotnet import parts
from cotnet.config.compose import Config
from cotnet.engine.distributed import Ranks
from cotnet.settings import DataSettings, Settings
from data.augmentation.settings import Augmentation
from data.augmentation.transform import Transform
from data.loading.plan import Batch
from data.sets.image_set import ImageSet
from data.sets.read import class_words

_HEAD: Final = 16  # pixels above each picture, for its caption
_OFF: Final[dict[str, Any]] = {
    **dict.fromkeys(("vertical_flip", "hue", "color_jitter", "erasing", "mixup", "cutmix"), 0.0),
    "policy": None,
}


def first_batch(config: Config, settings: Settings, *, images: ImageSet, count: int, epoch: int = 0) -> Batch:
    """The first `count` training images of an epoch, as the configuration's loader gives them to a single rank."""
    few = replace(settings.train, batch_size=count, accumulation=1)
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    loader, _ = parts.train_loader(config, replace(settings, train=few), images, alone)
    with closing(loader):
        batch: Batch = next(loader.batches(epoch))
        return batch


def captions(data: DataSettings, images: ImageSet, batch: Batch) -> list[str]:
    """What people call the class of each image of a batch."""
    words = class_words(data.root, images.classes)
    return [words[label] for label in batch.targets.tolist()]


def after_each_part(
    augmentation: Augmentation, settings: Settings, *, batch: Batch, epoch: int
) -> dict[str, torch.Tensor]:
    """The batch (n, 3, S, S) uint8 after each part that is on, one more part in each column."""
    data, columns = settings.data, {}
    present = replace(augmentation, **_OFF)
    changes: dict[str, dict[str, Any]] = {
        "vertical flip": {"vertical_flip": augmentation.vertical_flip},
        "colour jitter": {"color_jitter": augmentation.color_jitter, "hue": augmentation.hue},
        augmentation.policy or "": {"policy": augmentation.policy},
        "erasing": {"erasing": augmentation.erasing},
        "mixed": {"mixup": augmentation.mixup, "cutmix": augmentation.cutmix},
    }
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    for title, part in changes.items():
        if not any(part.values()):
            continue
        present = replace(present, **part)
        transform = Transform(present, mean=data.mean, std=data.std, num_classes=data.num_classes, seed=settings.seed)
        normal, _ = transform(batch.images, batch.targets, batch.indices, epoch)
        columns[f"+ {title}"] = ((normal * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return columns


def contact_sheet(columns: Mapping[str, torch.Tensor], captions: Sequence[str]) -> Image.Image:
    """Columns of pictures (n, 3, S, S) uint8 under their titles, with a caption above each row."""
    side = max(next(iter(columns.values())).shape[-1], 96)
    sheet = Image.new("RGB", (len(columns) * (side + 4), _HEAD + len(captions) * (side + _HEAD)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures) in enumerate(columns.items()):
        draw.text((column * (side + 4), 2), title, fill="black")
        for row, picture in enumerate(pictures):
            top = _HEAD + row * (side + _HEAD)
            if column == 0:
                draw.text((0, top + 2), captions[row], fill="black")
            pixels = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
            sheet.paste(pixels.resize((side, side), Image.Resampling.NEAREST), (column * (side + 4), top + _HEAD))
    return sheet
