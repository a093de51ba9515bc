"""The figures of detection and segmentation, in percent: COCO's average precision and recall, and the mean IoU."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from cotnet.dense.masks import coco_tools
from data.sets.image_set import IGNORED

# In the order of COCO's own table. Areas: below 32^2 pixels, below 96^2, above. AR counts an image's best 1, 10 or 100.
PRECISIONS: Final = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
RECALLS: Final = ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


class DenseFigures(NamedTuple):
    """`total`: the figures by name. `each`: a row per class, with `name` and its figures. None: nothing to measure."""

    total: dict[str, float | None]
    each: list[dict[str, Any]]


def box_and_mask_figures(
    truth: Mapping[str, Any] | Path, results: Sequence[Mapping[str, Any]], *, masks: bool
) -> DenseFigures:
    """COCO's twelve figures of boxes (`box_ap`, `box_ap50`, ...) and, with `masks`, of masks (`mask_ap`, ...).

    A figure is None (null in JSON) where COCO's own code says -1: the truth has no object of that category or area. If
    there is an object and no result, it is 0. As in detectron2, the area of a mask is its pixels, not its box.
    Definitions: Lin et al., "Microsoft COCO" (2014), and cocodataset.org, "Detection Evaluation".

    Args:
        truth: annotations in COCO's format, or their file. results: in COCO's results format. Neither is changed.

    Raises:
        InputError: the extra `dense` is not installed.
    """
    content = json.loads(truth.read_bytes()) if isinstance(truth, Path) else truth
    categories = sorted(content["categories"], key=lambda one: one["id"])
    total: dict[str, float | None] = {}
    each: list[dict[str, Any]] = [{"name": one["name"]} for one in categories]
    for kind in ("box", "mask") if masks else ("box",):
        evaluation = _evaluation(content, results, "bbox" if kind == "box" else "segm")
        for name, value in zip((*PRECISIONS, *RECALLS), evaluation.stats.tolist()[:12], strict=True):
            total[f"{kind}_{name}"] = None if value < 0 else 100 * value
        precision = evaluation.eval["precision"]  # (IoU 10, recall 101, category, area 4, limit 3); -1: nothing
        for number, row in enumerate(each):
            values = precision[:, :, number, 0, -1]
            row[f"{kind}_ap"] = 100 * float(values[values > -1].mean()) if (values > -1).any() else None
    return DenseFigures(total, each)


def _evaluation(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str) -> Any:
    """A finished COCOeval of `kind` bbox or segm."""
    tools = coco_tools()
    annotations = [
        {"iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3], **one, "id": number}  # 0 would mean "not matched"
        for number, one in enumerate(truth["annotations"], 1)
    ]
    known = tools.COCO({"images": truth["images"], "categories": truth["categories"], "annotations": annotations})
    unwanted = "bbox" if kind == "segm" else "segmentation"  # with a box, its area would count as the mask's
    found = known.loadRes([{key: value for key, value in one.items() if key != unwanted} for one in results])
    evaluation = tools.COCOeval_faster(known, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def confusion_of(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Pixels (K, K) int64 by target (row) and prediction (column), both (h, w) int64; targets of 255 do not count."""
    counted = target != IGNORED
    pairs = target[counted] * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def segmentation_figures(confusion: Tensor, names: Sequence[str]) -> DenseFigures:
    """`miou`, `pixel_accuracy` and `class_accuracy` (mean over classes) of a matrix (K, K) of `confusion_of`.

    A class without a pixel in truth and prediction has IoU None, one without a pixel in the truth accuracy None; means
    leave both out. Long et al., "Fully Convolutional Networks for Semantic Segmentation" (2015), section 5.
    """
    hits, target, predicted = (one.tolist() for one in (confusion.diagonal(), confusion.sum(1), confusion.sum(0)))
    each: list[dict[str, Any]] = [
        {"name": name, "iou": _percent(hit, true + found - hit), "accuracy": _percent(hit, true)}
        for name, hit, true, found in zip(names, hits, target, predicted, strict=True)
    ]
    means = {key: [row[key] for row in each if row[key] is not None] for key in ("iou", "accuracy")}
    miou, class_accuracy = (math.fsum(values) / len(values) if values else None for values in means.values())
    pixel_accuracy = _percent(sum(hits), sum(target))
    return DenseFigures({"miou": miou, "pixel_accuracy": pixel_accuracy, "class_accuracy": class_accuracy}, each)


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
