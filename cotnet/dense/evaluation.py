"""Exact evaluation of detectors and segmenters: every image once, the same figures on any number of ranks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from cotnet.dense.masks import coco_tools
from cotnet.dense.metrics import DenseFigures, box_and_mask_figures, confusion_of, segmentation_figures
from cotnet.dense.semantic import class_map
from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import Interrupted, Loader
from cotnet.engine.precision import Precision

Result = dict[str, Any]


class Scored(NamedTuple):
    """`found` of a detector: on rank 0 its results in COCO's format, in the order of the images; elsewhere an empty
    list. `found` of a segmenter: pixels (K, K) int64 on the CPU, by target (row) and prediction (column)."""

    figures: DenseFigures
    found: Any


class How(TypedDict):
    """`stop`: whether to give up. `advance`: called with the number of images done since its last call."""

    precision: Precision
    ranks: Ranks
    stop: Callable[[], bool]
    advance: Callable[[int], None]


@torch.inference_mode()
def evaluate_detector(
    models: Mapping[str, nn.Module], loader: Loader, image_set: Any, *, masks: bool, **how: Unpack[How]
) -> dict[str, Scored]:
    """COCO's figures of each model, equal on every rank; collective. Raises what `outputs_of` does.

    image_set: `sizes` (n, 2) of the files, height and width; `image_ids` (n); `category_ids` of the labels 1..K;
    `annotations`, in COCO's format, or their file.
    """
    ranks, mine = how["ranks"], {name: dict[int, list[Result]]() for name in models}
    for name, outputs, batch in outputs_of(models, loader, samples=len(image_set.image_ids), **how):
        for index, image, output in zip(batch.indices.tolist(), batch.images, outputs, strict=True):
            size = int(image_set.sizes[index][0]), int(image_set.sizes[index][1])
            same = {"image_id": int(image_set.image_ids[index])}
            rows = coco_results(output, image.shape[-2:], size, image_set.category_ids, masks=masks)
            mine[name][index] = [same | row for row in rows]
    scored = {}
    for name, rows_of in mine.items():
        every = {index: rows for part in ranks.gather(rows_of) for index, rows in part.items()}
        results = [row for index in sorted(every) for row in every[index]]
        figures = box_and_mask_figures(image_set.annotations, results, masks=masks) if ranks.first else None
        scored[name] = Scored(ranks.broadcast(figures), results)
    return scored


@torch.inference_mode()
def evaluate_segmenter(
    models: Mapping[str, nn.Module], loader: Loader, names: Sequence[str], *, samples: int, **how: Unpack[How]
) -> dict[str, Scored]:
    """Mean IoU and accuracies of each model at the size of the files, equal on every rank; collective.

    names: of the K classes. Raises what `outputs_of` does.
    """
    ranks, size = how["ranks"], (len(names), len(names))
    tables = {name: torch.zeros(size, dtype=torch.int64, device=ranks.device) for name in models}
    for name, outputs, batch in outputs_of(models, loader, samples=samples, **how):
        for output, target in zip(outputs, batch.targets, strict=True):
            classes = target["classes"]
            tables[name] += confusion_of(class_map(output["logits"], classes.shape), classes, len(names))
    whole = {name: ranks.sum(table).cpu() for name, table in tables.items()}
    return {name: Scored(segmentation_figures(table, names), table) for name, table in whole.items()}


def outputs_of(
    models: Mapping[str, nn.Module], loader: Loader, *, samples: int, **how: Unpack[How]
) -> Iterator[tuple[str, list[dict[str, Tensor]], Any]]:
    """(model's name, its outputs, batch) of each batch of this rank and each model, in evaluation mode; collective.

    Raises:
        Interrupted: `stop()` was true on some rank. RuntimeError: an image was evaluated not exactly once.
    """
    seen, ranks = torch.zeros(samples, dtype=torch.int64), how["ranks"]
    modes = {name: model.training for name, model in models.items()}
    try:
        for model in models.values():
            model.eval()
        for batch in loader.batches(0):
            if how["stop"]():
                break
            seen.index_add_(0, batch.indices, torch.ones_like(batch.indices))
            for name, model in models.items():
                with how["precision"].autocast():
                    outputs = model(batch.images)
                yield name, outputs, batch
            how["advance"](len(batch.indices))
    finally:
        for name, model in models.items():
            model.train(modes[name])
    if ranks.any(how["stop"]()):
        raise Interrupted
    if wrong := int((ranks.sum(seen.to(ranks.device)) != 1).sum()):
        raise RuntimeError(f"{wrong} of {samples} images were not evaluated exactly once")


def coco_results(
    output: Mapping[str, Tensor], given: Sequence[int], size: tuple[int, int], ids: Sequence[int], *, masks: bool
) -> list[Result]:
    """An image's detections in COCO's results format without `image_id`; those of no area in the image are left out.

    Boxes (x, y, width, height) are in pixels of the file, rounded to thousandths; scores keep every digit.
    given, size: height and width of the image that the model saw, and of the file. ids: of the categories.
    """
    border, seen = (torch.tensor([w, h, w, h], dtype=torch.float64) for h, w in (size, given))
    boxes = (output["boxes"].double().cpu() * (border / seen)).clamp(min=0).minimum(border)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)  # nor is a box with a NaN
    boxes, labels, scores = (part.cpu()[inside] for part in (boxes, output["labels"], output["scores"]))
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    rows: list[Result] = [
        {"category_id": int(ids[label - 1]), "bbox": [round(side, 3) for side in box], "score": score}
        for box, label, score in zip(sides.tolist(), labels.tolist(), scores.tolist(), strict=True)
    ]
    if masks:
        shapes = output["masks"].double().cpu()[inside].numpy()
        for row, shape, box in zip(rows, shapes, boxes.numpy(), strict=True):
            row["segmentation"] = run_length(shape, box, size)
    return rows


def run_length(shape: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> Result:
    """COCO's run lengths of a mask as `pasted` draws it. Raises InputError without the extra `dense`."""
    found = coco_tools().mask.encode(pasted(shape, box, size))
    return {"size": list(size), "counts": found["counts"].decode()}


def pasted(shape: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (M, M) of probabilities over a box within an image of this height and width, as (H, W) uint8, column by
    column in memory: 1 where the probability is at least 0.5.

    It is interpolated bilinearly between the centres of its cells, with 0 outside the box, as in detectron2. On the
    CPU, where only the box is drawn: a GPU would have to send the whole image of each object.
    """
    image = np.zeros(size[::-1], dtype=np.uint8)
    (left, top), (right, bottom) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    sides = ((box[0], box[2], np.arange(left, right)), (box[1], box[3], np.arange(top, bottom)))
    across, down = (
        np.maximum(0, 1 - np.abs(((at + 0.5 - low) / (high - low) * len(shape) - 0.5)[:, None] - np.arange(len(shape))))
        for low, high, at in sides
    )  # (w, M), (h, M): how much each cell counts in each pixel
    image[left:right, top:bottom] = across @ shape.T @ down.T >= 0.5
    return image.T
