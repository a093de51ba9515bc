"""Pictures of what a detector or a segmenter found, beside the truth."""

import colorsys
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from torch import Tensor

from cotnet.dense.masks import drawn
from cotnet.evaluation.picture_sheet import Frame, PicturePanel, draw_sheet
from data.sets.image_set import IGNORED

CLEAR: Final = 0.5  # least score of a detection that is drawn
MOST: Final = 40  # detections that are drawn, the best first
MATCH: Final = 0.5  # least IoU of boxes of one class that belong together
NAMED: Final = 14  # classes in a legend
OPACITY: Final = 0.45
# Okabe and Ito's colours, which nearly everyone can tell apart; the yellow is darkened, and there is no black.
COLORS: Final = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#d6c800")
WRONG: Final = "#d62728"
Size = tuple[int, int]


class DrawnObject(NamedTuple):
    """An object in an image. `box`: x, y, width, height in pixels; `mask`: (h, w) bool; `number`: of its class, which
    chooses the colour; `score`: None in the truth."""

    name: str
    number: int
    box: tuple[float, float, float, float]
    score: float | None = None
    mask: np.ndarray | None = None
    crowd: bool = False


def color(number: int) -> str:
    """The colour of a class; of the first seven, any two are easily told apart."""
    if number < len(COLORS):
        return COLORS[number]
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.55 + 0.4 * (number % 3) / 2, 0.9)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def coco_objects(rows: Iterable[Mapping[str, Any]], names: Mapping[int, str], size: Size) -> list[DrawnObject]:
    """Annotations or results of one image, in COCO's format. names: by category id. size: height and width.

    Raises InputError without the extra `dense` if there is a mask.
    """
    numbers = {category: number for number, category in enumerate(sorted(names))}
    return [
        DrawnObject(
            name=names[row["category_id"]],
            number=numbers[row["category_id"]],
            box=tuple(row["bbox"]),
            score=row.get("score"),
            mask=drawn(row["segmentation"], size).astype(bool) if row.get("segmentation") else None,
            crowd=bool(row.get("iscrowd", 0)),
        )
        for row in rows
    ]


def labelled_objects(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    names: Sequence[str],
    *,
    masks: Sequence[np.ndarray] | np.ndarray | None = None,
    crowd: Sequence[bool] | np.ndarray | None = None,
) -> list[DrawnObject]:
    """Objects of boxes (x1, y1, x2, y2) and labels from 1, as image sets and batches hold them."""
    return [
        DrawnObject(
            name=names[label - 1],
            number=label - 1,
            box=(x, y, right - x, bottom - y),
            mask=None if masks is None else masks[number].astype(bool),
            crowd=crowd is not None and bool(crowd[number]),
        )
        for number, ((x, y, right, bottom), label) in enumerate(zip(boxes, labels, strict=True))
    ]


def detection_panels(
    pixels: Tensor, found: Sequence[DrawnObject], truth: Sequence[DrawnObject]
) -> tuple[list[PicturePanel], str]:
    """Two panels, the detections and the truth, and a sentence for those who cannot see them.

    A dashed box is a detection without an object of its class (IoU below 0.5), or an object that none found.
    pixels: (3, h, w) uint8. Detections with a score below 0.5 are left out.
    """
    clear = sorted((one for one in found if (one.score or 0) >= CLEAR), key=lambda one: -(one.score or 0))[:MOST]
    partners = matched(clear, truth)
    false, missed = len(clear) - len(partners), [one for one in range(len(truth)) if one not in partners.values()]
    missed = [one for one in missed if not truth[one].crowd]
    image = pixels.permute(1, 2, 0).numpy()
    ours = [frame(one, dashed=number not in partners) for number, one in enumerate(clear)]
    theirs = [frame(one, dashed=number in missed) for number, one in enumerate(truth)]
    panels = [
        PicturePanel(f"predicted: {len(clear)}" + (f", {false} wrong" if false else ""), painted(image, clear), ours),
        PicturePanel(
            f"truth: {len(truth)}" + (f", {len(missed)} missed" if missed else ""), painted(image, truth), theirs
        ),
    ]
    said = ", ".join(f"{one.name} {one.score:.2f}" for one in clear) or "nothing"
    counts = Counter(one.name for one in truth)
    real = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no object"
    alt = f"Predicted with a score of at least {CLEAR}: {said}; {false} wrong. The truth: {real}; {len(missed)} missed."
    return panels, alt


def matched(found: Sequence[DrawnObject], truth: Sequence[DrawnObject]) -> dict[int, int]:
    """For each detection the object of its class that it covers best, the surest detection first; an object serves
    once, a crowd any number of times."""
    partners: dict[int, int] = {}
    for number, one in enumerate(found):
        free = [
            (iou(one.box, other.box, crowd=other.crowd), place)
            for place, other in enumerate(truth)
            if other.number == one.number and (other.crowd or place not in partners.values())
        ]
        best, place = max(free, default=(0.0, -1))
        if best >= MATCH:
            partners[number] = place
    return partners


def iou(one: Sequence[float], other: Sequence[float], *, crowd: bool = False) -> float:
    """Of two boxes (x, y, width, height); of a crowd the part of the first box within it, as COCO counts."""
    wide, high = (max(0.0, min(one[a] + one[a + 2], other[a] + other[a + 2]) - max(one[a], other[a])) for a in range(2))
    whole = one[2] * one[3] + (0 if crowd else other[2] * other[3] - wide * high)
    return wide * high / whole if whole else 0.0


def frame(one: DrawnObject, *, dashed: bool) -> Frame:
    """The box of an object with its name and its score."""
    text = one.name if one.score is None else f"{one.name} {one.score:.2f}"
    return Frame(one.box, color(one.number), text + (" (crowd)" if one.crowd else ""), dashed)


def painted(image: np.ndarray, objects: Sequence[DrawnObject]) -> np.ndarray:
    """The image (h, w, 3) uint8 with the masks in the colours of their classes, outlined."""
    result = image.copy()
    for one in objects:
        if one.mask is not None:
            inner = one.mask.copy()
            inner[1:-1, 1:-1] &= one.mask[:-2, 1:-1] & one.mask[2:, 1:-1] & one.mask[1:-1, :-2] & one.mask[1:-1, 2:]
            blend(result, one.mask, color(one.number), OPACITY)
            blend(result, one.mask & ~inner, color(one.number), 0.9)
    return result


def blend(image: np.ndarray, where: np.ndarray, paint: str, opacity: float) -> None:
    """Paints the pixels of a mask in place."""
    value = np.array([int(paint[start : start + 2], 16) for start in (1, 3, 5)])
    image[where] = np.rint((1 - opacity) * image[where] + opacity * value).astype(np.uint8)


def segmentation_panels(
    pixels: Tensor, predicted: Tensor, truth: Tensor, names: Sequence[str]
) -> tuple[list[PicturePanel], str]:
    """Three panels: classes as predicted, as in the truth, and the wrong pixels; and a sentence that says the same.

    pixels: (3, h, w) uint8. predicted, truth: (h, w) classes; 255 in the truth is not painted and counts nowhere.
    """
    image, ours, theirs = pixels.permute(1, 2, 0).numpy(), predicted.numpy(), truth.numpy()
    known = theirs != IGNORED
    wrong = known & (ours != theirs)
    right = 100 * (1 - wrong.sum() / known.sum()) if known.any() else math.nan
    areas = Counter(
        dict(zip(*np.unique(np.concatenate([ours[known], theirs[known]]), return_counts=True), strict=True))
    )
    legend = {names[one]: color(int(one)) for one, _ in areas.most_common(NAMED)}
    mistakes = np.repeat(image.mean(2, keepdims=True) * 0.6 + 90, 3, 2).astype(np.uint8)
    blend(mistakes, wrong, WRONG, 0.75)
    blend(mistakes, ~known, "#ffffff", 0.6)
    panels = [
        PicturePanel("predicted", colored(image, ours), legend=legend),
        PicturePanel("truth", colored(image, theirs)),
        PicturePanel(f"wrong pixels, {100 - right:.1f} %", mistakes),
    ]
    present = ", ".join(names[one] for one in np.unique(theirs[known]))
    alt = (
        f"Classes predicted beside the truth ({present or 'nothing labelled'}); {right:.1f} % of the pixels are right."
    )
    return panels, alt


def colored(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The image with each pixel in the colour of its class; 255 is left as it is."""
    result = image.copy()
    for one in np.unique(classes):
        if one != IGNORED:
            blend(result, classes == one, color(int(one)), 0.65)
    return result


def draw_detections(
    png: Path, pixels: Tensor, found: Sequence[DrawnObject], truth: Sequence[DrawnObject], *, title: str
) -> str:
    """A PNG of an image's detections beside the truth; returns its alternative text. See `detection_panels`."""
    panels, alt = detection_panels(pixels, found, truth)
    draw_sheet(png, [panels], title=title, inches=3.0)
    return f"{title}. {alt}"


def draw_segmentation(
    png: Path, pixels: Tensor, predicted: Tensor, truth: Tensor, *, names: Sequence[str], title: str
) -> str:
    """A PNG of an image's classes beside the truth; returns its alternative text. See `segmentation_panels`."""
    panels, alt = segmentation_panels(pixels, predicted, truth, names)
    draw_sheet(png, [panels], title=title, inches=2.4)
    return f"{title}. {alt}"
