"""The files that the evaluation of a detector or a segmenter leaves beside metrics.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from cotnet.evaluation.predictions import write_csv
from cotnet.files import write_text

PREDICTIONS: Final = "predictions.json"
CONFUSION, CLASSES = "confusion.csv", "classes.csv"
PICTURES: Final = Path("pictures", "pictures.json")


def write_predictions(folder: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """predictions.json: detections in COCO's results format, which pycocotools' `loadRes` reads. Boxes have three
    decimals, scores every digit, so the figures of this file are the figures of metrics.json.

    Raises OSError if the file cannot be written.
    """
    path = folder / PREDICTIONS
    write_text(path, json.dumps(list(results), allow_nan=False, separators=(",", ":")))
    return path


def write_classes(folder: Path, each: Sequence[Mapping[str, Any]], confusion: Tensor) -> None:
    """classes.csv: class, IoU and accuracy in percent, an empty cell without pixels; confusion.csv: pixels (K, K), a
    row per class of the truth, a column per class predicted. Raises OSError if a file cannot be written."""
    names = [row["name"] for row in each]
    rows = [(row["name"], row["iou"], row["accuracy"]) for row in each]
    write_csv(folder / CLASSES, ("class", "iou", "accuracy"), rows)
    pixels = [(name, *counts) for name, counts in zip(names, confusion.tolist(), strict=True)]
    write_csv(folder / CONFUSION, ("class", *names), pixels)


def write_picture_list(folder: Path, pictures: Sequence[tuple[str, str, str]]) -> None:
    """pictures/pictures.json: for each (image's file, name of its PNG in that folder, alternative text) an object with
    `file`, `png` and `alt`. Raises OSError if the file cannot be written."""
    rows = [{"file": file, "png": png, "alt": alt} for file, png, alt in pictures]
    write_text(folder / PICTURES, json.dumps({"pictures": rows}, indent=1))
