"""See what training sees: `python -m cotnet.browse [experiment=NAME] [key=value] ... [--out FILE] [--images N]`.

Writes a contact sheet with one training image per row: its central crop, the same random crop by DALI and by
torchvision, their difference (16 times as strong), and the crop after each part of the recipe's augmentation.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cotnet import image_parts, parts
from cotnet.commands.contact_sheet import after_each_part, captions, contact_sheet, first_batch
from cotnet.commands.program import one_line
from cotnet.config.build import build
from cotnet.config.compose import Config, compose
from cotnet.config.plugins import admit
from cotnet.errors import InputError
from cotnet.settings import Settings
from data.loading.plan import Batch
from data.prepare.commands import positive
from data.sets.image_set import ImageSet

DALI, TORCHVISION = "data.loading.dali.DaliLoader", "data.loading.torchvision.TorchvisionLoader"


def columns(
    config: Config, settings: Settings, *, train: ImageSet, count: int, epoch: int
) -> tuple[dict[str, torch.Tensor], Batch]:
    """The sheet's columns by title, each (count, 3, S, S) uint8, and the epoch's first images, which they show."""

    def drawn(loader: str, **changes: Any) -> Batch:
        node = {"_target_": loader, "threads": 1, "prefetch": 1}
        augmentation = {**config["augmentation"], "progressive": None, **changes}
        changed = {**config, "loader": node, "augmentation": augmentation}
        return first_batch(changed, settings, images=train, count=count, epoch=epoch)

    by_dali, by_torchvision = drawn(DALI), drawn(TORCHVISION)
    difference = (by_dali.images.int() - by_torchvision.images.int()).abs().mul(16).clamp(max=255)
    crops = {
        "central crop": drawn(TORCHVISION, crop_scale=None, flip=0.0).images,
        "DALI": by_dali.images,
        "torchvision": by_torchvision.images,
        "difference x16": difference.to(torch.uint8),
    }
    augmentation = build(config["augmentation"], "augmentation")
    return crops | after_each_part(augmentation, settings, batch=by_dali, epoch=epoch), by_dali


def write(sheet: Image.Image, out: Path) -> None:
    """Save the sheet in the format of `out`'s ending. Raises InputError if that fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except (OSError, ValueError) as error:  # ValueError: an unknown ending
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--out {out}: {reason}; give a file that can be written and ends in .png") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one sheet; exits with 2 and one line for wrong settings or images."""
    parser = argparse.ArgumentParser(
        prog="python -m cotnet.browse", description="A contact sheet of what training sees."
    )
    parser.add_argument("overrides", nargs="*", help="as for train.py: experiment=NAME, data.root=DIR, ...")
    parser.add_argument("--out", type=Path, default=Path("outputs/browse.png"), help="file to write (%(default)s)")
    parser.add_argument("--images", type=positive, default=8, help="rows (%(default)s)")
    parser.add_argument("--epoch", type=int, default=0, help="whose draws to show (%(default)s)")
    given = parser.parse_args(arguments)
    with one_line(keep=False):
        config = compose("train", given.overrides)
        admit(config.get("plugins", ()))
        settings = parts.settings_of(config)
        train, _ = image_parts.read_data(settings.data)
        if given.images > len(train.files):
            raise InputError(f"--images {given.images}: the training set has {len(train.files)}; ask for at most these")
        found, batch = columns(config, settings, train=train, count=given.images, epoch=given.epoch)
        write(contact_sheet(found, captions(settings.data, train, batch)), given.out)
    sys.stdout.write(f"{given.out}: {given.images} images, {len(found)} columns\n")


if __name__ == "__main__":
    main()
