"""See what training sees: `python -m data.browse [experiment=NAME] [key=value] ... [--out FILE] [--images N]`.

Writes a contact sheet: one image of the training set a row; its central crop, the same random crop by DALI and by
torchvision, their difference (16 times as strong), and the crop after each part of the recipe's augmentation in turn.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from cotnet import parts
from cotnet.commands.program import one_line
from cotnet.config.build import build
from cotnet.config.compose import compose
from cotnet.settings import Settings
from data.augment import Augmentation, Transform
from data.commands import positive
from data.dali import DaliLoader
from data.order import Batch, TrainPlan
from data.samples import DataError, ImageSet, class_words
from data.torchvision import TorchvisionLoader

_HEAD = 16  # pixels above each picture for its words
_OFF: dict[str, Any] = {
    "vertical_flip": 0.0,
    "hue": 0.0,
    "color_jitter": 0.0,
    "policy": None,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


def columns(
    augmentation: Augmentation, settings: Settings, train: ImageSet, images: int, epoch: int
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The sheet's columns by title, each (images, 3, S, S) uint8, of the epoch's first images, and their labels."""
    data = settings.data
    plan = TrainPlan(
        samples=len(train.files),
        batch_size=images,
        rank=0,
        world_size=1,
        seed=settings.seed,
        image_size=data.image_size,
        crop_scale=augmentation.crop_scale,
        crop_ratio=augmentation.crop_ratio,
        flip=augmentation.flip,
        eval_crop_ratio=data.crop_ratio,
        repeats=augmentation.repeats,
        left_out=train.left_out,
    )
    central = replace(plan, crop_scale=None, flip=0.0)
    kind = augmentation.interpolation
    by_dali = _first_batch(DaliLoader, train, plan, kind, epoch)
    by_torchvision = _first_batch(TorchvisionLoader, train, plan, kind, epoch)
    difference = (by_dali.images.int() - by_torchvision.images.int()).abs().mul(16).clamp(max=255)
    found = {
        "central crop": _first_batch(TorchvisionLoader, train, central, kind, epoch).images,
        "DALI": by_dali.images,
        "torchvision": by_torchvision.images,
        "difference x16": difference.to(torch.uint8),
    }
    return found | after_each_part(augmentation, settings, by_dali, epoch), by_dali.targets.tolist()


def _first_batch(
    loader: Callable[..., DaliLoader | TorchvisionLoader], train: ImageSet, plan: TrainPlan, kind: str, epoch: int
) -> Batch:
    opened = loader(train, plan, device=torch.device("cpu"), interpolation=kind, threads=1, prefetch=1)
    try:
        return next(opened.batches(epoch))
    finally:
        opened.close()


def after_each_part(
    augmentation: Augmentation, settings: Settings, batch: Batch, epoch: int
) -> dict[str, torch.Tensor]:
    """The batch after the parts that are on, one more in each column."""
    data, found = settings.data, {}
    present = replace(augmentation, **_OFF)
    parts: dict[str, dict[str, Any]] = {
        "vertical flip": {"vertical_flip": augmentation.vertical_flip},
        "colour jitter": {"color_jitter": augmentation.color_jitter, "hue": augmentation.hue},
        augmentation.policy or "": {"policy": augmentation.policy},
        "erasing": {"erasing": augmentation.erasing},
        "mixed": {"mixup": augmentation.mixup, "cutmix": augmentation.cutmix},
    }
    for title, part in parts.items():
        if not any(part.values()):
            continue
        present = replace(present, **part)
        transform = Transform(present, mean=data.mean, std=data.std, num_classes=data.num_classes, seed=settings.seed)
        normal, _ = transform(batch.images, batch.targets, batch.indices, epoch)
        mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
        found[f"+ {title}"] = ((normal * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return found


def contact_sheet(found: dict[str, torch.Tensor], captions: Sequence[str]) -> Image.Image:
    """The columns side by side under their titles, a caption above each row's first picture."""
    side = max(next(iter(found.values())).shape[-1], 96)
    sheet = Image.new("RGB", (len(found) * (side + 4), _HEAD + len(captions) * (side + _HEAD)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures) in enumerate(found.items()):
        draw.text((column * (side + 4), 2), title, fill="black")
        for row, picture in enumerate(pictures):
            top = _HEAD + row * (side + _HEAD)
            if column == 0:
                draw.text((0, top + 2), captions[row], fill="black")
            pixels = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
            sheet.paste(pixels.resize((side, side), Image.Resampling.NEAREST), (column * (side + 4), top + _HEAD))
    return sheet


def write(sheet: Image.Image, out: Path) -> None:
    """Save the sheet in the format of `out`'s ending; DataError where that does not go."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no format
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"--out {out}: {reason}; give a file that can be written and ends in .png") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one sheet; exits with 2 and one line for wrong settings or images."""
    parser = argparse.ArgumentParser(prog="python -m data.browse", description="A contact sheet of what training sees.")
    parser.add_argument("overrides", nargs="*", help="as for train.py: experiment=NAME, data.root=DIR, ...")
    parser.add_argument("--out", type=Path, default=Path("outputs/browse.png"), help="file to write (%(default)s)")
    parser.add_argument("--images", type=positive, default=8, help="rows (%(default)s)")
    parser.add_argument("--epoch", type=int, default=0, help="whose draws to show (%(default)s)")
    given = parser.parse_args(arguments)
    with one_line(keep=False):
        config = compose("train", given.overrides)
        settings = parts.settings_of(config)
        train, _ = parts.read_data(settings.data)
        if given.images > len(train.files):
            raise DataError(f"--images {given.images}: the training set has {len(train.files)}; ask for at most these")
        words = class_words(settings.data.root, train.classes)
        augmentation: Augmentation = build(config["augmentation"], "augmentation")
        found, labels = columns(augmentation, settings, train, given.images, given.epoch)
        write(contact_sheet(found, [words[label] for label in labels]), given.out)
    sys.stdout.write(f"{given.out}: {given.images} images, {len(found)} columns\n")


if __name__ == "__main__":
    main()
