"""What the evaluation of a detector or a segmenter leaves in its folder, and the line it prints."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cotnet import dense_parts, records
from cotnet.config.compose import Config
from cotnet.dense.ade20k import LabelMapSet, decoded
from cotnet.dense.coco import CocoSet
from cotnet.dense.evaluation import Scored
from cotnet.dense.semantic import class_map
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision
from cotnet.evaluation.dense_files import PICTURES, write_classes, write_picture_list, write_predictions
from cotnet.evaluation.dense_pictures import (
    DrawnObject,
    coco_objects,
    draw_detections,
    draw_segmentation,
    labelled_objects,
)
from cotnet.headline import NAMES
from cotnet.reporting.terminal import say

METRICS = "metrics.json"


def write(folder: Path, scored: Scored, images: Any, told: dict[str, Any]) -> None:
    """Writes predictions.json, or classes.csv and confusion.csv, then metrics.json; prints a line."""
    figures, detection = scored.figures, told["task"] == "detection"
    if detection:
        write_predictions(folder, scored.found)
    else:
        write_classes(folder, figures.each, scored.found)
    each = {"categories" if detection else "classes": figures.each}
    told = {**told, "images": len(images.files), "dropped": getattr(images, "dropped", {})}
    records.write_json(folder / METRICS, {**figures.total, **told, **each})
    values = ", ".join(
        f"{NAMES[key]} {figures.total[key]:.2f} %" for key in NAMES if figures.total.get(key) is not None
    )
    speed = f"{len(images.files)} images at {told['images_per_second']:.1f} images/s"
    say(f"{told['checkpoint']} ({told['weights']}): {values} on {speed} -> {folder / METRICS}")


def draw_pictures(
    config: Config, model: nn.Module, scored: Scored, images: Any, *, count: int, precision: Precision
) -> None:
    """Pictures of `count` images, spread over the set, with what was found beside the truth; by one process alone."""
    chosen = sorted({round(place) for place in np.linspace(0, len(images.files) - 1, count)}) if count else []
    folder = Path(config["output_dir"])
    (folder / PICTURES).parent.mkdir(exist_ok=True)
    detection = isinstance(images, CocoSet)
    maps = iter(()) if detection else predicted_maps(config, model, images, chosen, precision=precision)
    listed = []
    for number, index in enumerate(chosen):
        png, file = (folder / PICTURES).parent / f"{number:02}.png", images.files[index]
        pixels = torch.from_numpy(decoded(images.root / file, rgb=True)).permute(2, 0, 1)
        if detection:
            alt = draw_detections(png, pixels, *objects(scored.found, images, index), title=file)
        else:
            truth = torch.from_numpy(images.classes(index)).long()
            alt = draw_segmentation(png, pixels, next(maps), truth, names=images.categories, title=file)
        listed.append((file, png.name, alt))
    write_picture_list(folder, listed)


def objects(results: Sequence[dict[str, Any]], images: CocoSet, index: int) -> tuple[list[DrawnObject], ...]:
    """The objects of an image: those found, and the truth."""
    size = (int(images.sizes[index][0]), int(images.sizes[index][1]))
    names = dict(zip(images.category_ids.tolist(), images.categories, strict=True))
    found = [row for row in results if row["image_id"] == images.image_ids[index]]
    boxes, labels, crowd, masks = images.truth(index)
    truth = labelled_objects(boxes.tolist(), labels.tolist(), images.categories, masks=masks, crowd=crowd)
    return coco_objects(found, names, size), truth


@torch.inference_mode()
def predicted_maps(
    config: Config, model: nn.Module, images: LabelMapSet, chosen: Sequence[int], *, precision: Precision
) -> Iterator[Tensor]:
    """The predicted classes (h, w) of the chosen images, at the size of their files."""
    settings = dense_parts.settings_of(config)
    some = dataclasses.replace(images, files=tuple(images.files[index] for index in chosen))
    alone = Ranks(rank=0, world_size=1, device=precision.device)
    with closing(dense_parts.evaluation_loader(config, settings, some, alone)) as loader:
        for batch in loader.batches(0):
            with precision.autocast():
                outputs = model(batch.images)
            for output, target in zip(outputs, batch.targets, strict=True):
                yield class_map(output["logits"], target["classes"].shape).cpu()
