"""Drawn sets for detection and segmentation: coloured shapes before noise, in COCO's and in ADE20K's layout."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from cotnet.errors import DataError
from cotnet.files import write_text
from data.loading.random import Stream, uniforms
from data.prepare.commands import claimed

SHAPES: Final = ("rectangle", "disc", "triangle", "cross")
STUFF: Final = ("sky", "ground")
_RECORD: Final = "shapes.json"  # in the folder: the numbers it was drawn by
_ADE: Final = {"train": "training", "val": "validation"}  # ADE20K's names of the splits
_TRIES: Final = 30  # places for an object before it is given up
_OVERLAP: Final = 0.2  # share of a box that another object may cover
_ARM: Final = 0.35  # half the width of a bar of the cross
_FINER: Final = 4  # edges are drawn at so many times the size
_OUTLINES: Final[dict[str, list[tuple[float, float]]]] = {  # x, y in a box from -1 to 1
    "rectangle": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "disc": [(float(np.cos(turn)), float(np.sin(turn))) for turn in np.linspace(0, 2 * np.pi, 33)[:-1]],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "cross": [
        (-_ARM, -1),
        (_ARM, -1),
        (_ARM, -_ARM),
        (1, -_ARM),
        (1, _ARM),
        (_ARM, _ARM),
        (_ARM, 1),
        (-_ARM, 1),
        (-_ARM, _ARM),
        (-1, _ARM),
        (-1, -_ARM),
        (-_ARM, -_ARM),
    ],
}


class _Drawing(NamedTuple):
    """A scene of h x w pixels."""

    pixels: np.ndarray  # (h, w, 3) uint8
    labels: np.ndarray  # (h, w) uint8: 0 other, 1 to 4 SHAPES, 5 and 6 STUFF
    objects: list[tuple[int, np.ndarray]]  # label and corners (n, 2) x, y; a later one lies before an earlier one
    crowd: np.ndarray | None  # (h, w) bool


def shapes(out: Path, *, images: int, val: int, size: int) -> str:
    """Write out/coco and out/ade, the same scenes in both; returns the line for people.

    images, val: scenes of the splits. size: longer side in pixels. The first scene of a split has a crowd of small
    discs, the second no object. Every call draws the same. Raises DataError if another process writes `out` or it holds
    something else.
    """
    if size < 32:
        raise DataError(f"--size {size}: the objects need at least 32 pixels")
    given, full = {"train": images, "val": val, "size": size}, out.resolve()
    full.parent.mkdir(parents=True, exist_ok=True)
    with claimed(out):
        if line := _already_there(out, given):
            return line
        partial = full.with_name(f"{full.name}.partial")
        if partial.exists():  # left by a killed run
            shutil.rmtree(partial)
        for split in _ADE:
            _write_split(partial, split, count=given[split], size=size)
        rows = [f"{number}\t{name}" for number, name in enumerate((*SHAPES, *STUFF), start=1)]
        write_text(partial / "ade/ADEChallengeData2016/objectInfo150.txt", "\n".join(["Idx\tName", *rows, ""]))
        write_text(partial / _RECORD, json.dumps(given))
        if full.exists():  # empty
            full.rmdir()
        partial.rename(full)
    return f"{out}: {_words(given)}"


def _words(given: dict[str, int]) -> str:
    scenes = f"{given['train']} training and {given['val']} validation images"
    return f"{scenes}; coco: objects of {len(SHAPES)} categories, ade: label maps of {len(SHAPES) + len(STUFF)} classes"


def _already_there(out: Path, given: dict[str, int]) -> str | None:
    """The line for people if `out` is complete, None if it is empty. Raises DataError if it holds something else."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: a file; give a folder as --out")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    record = out / _RECORD
    if not record.is_file() or json.loads(record.read_text()) != given:
        raise DataError(f"{out}: holds something else than this set; remove it or give another --out")
    return f"{out}: already there ({_words(given)})"


def _write_split(out: Path, split: str, *, count: int, size: int) -> None:
    coco, ade = out / "coco", out / "ade/ADEChallengeData2016"
    pictures, images, maps = coco / f"{split}2017", ade / "images" / _ADE[split], ade / "annotations" / _ADE[split]
    for folder in (coco / "annotations", pictures, images, maps):
        folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        scene = _drawing(number, split, size=size)
        height, width = scene.labels.shape
        picture = Image.fromarray(scene.pixels)
        picture.save(pictures / f"{number + 1:012d}.jpg", quality=92)
        picture.save(images / f"ADE_{split}_{number + 1:08d}.jpg", quality=92)
        Image.fromarray(scene.labels).save(maps / f"ADE_{split}_{number + 1:08d}.png")
        entries.append({"id": number + 1, "file_name": f"{number + 1:012d}.jpg", "height": height, "width": width})
        for annotation in _annotations(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **annotation})
    categories = [{"id": label, "name": name} for label, name in enumerate(SHAPES, start=1)]
    content = {"info": {}, "images": entries, "annotations": annotations, "categories": categories}
    write_text(coco / f"annotations/instances_{split}2017.json", json.dumps(content))


def _annotations(scene: _Drawing) -> Iterator[dict[str, Any]]:
    """COCO's entries of a scene, without ids."""
    for label, corners in scene.objects:
        x, y = corners.T
        area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2  # the shoelace formula
        box = [*corners.min(axis=0).tolist(), *np.ptp(corners, axis=0).tolist()]
        yield {
            "category_id": label,
            "bbox": box,
            "area": float(area),
            "segmentation": [corners.ravel().tolist()],
            "iscrowd": 0,
        }
    if scene.crowd is not None:
        rows, columns = np.nonzero(scene.crowd)
        left, top = int(columns.min()), int(rows.min())
        flat = scene.crowd.T.ravel()  # run lengths go down the columns, and begin with zeros
        ends = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
        yield {
            "category_id": 1 + SHAPES.index("disc"),
            "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
            "area": int(flat.sum()),
            "segmentation": {"size": [*scene.crowd.shape], "counts": np.diff(ends, prepend=0).tolist()},
            "iscrowd": 1,
        }


def _drawing(number: int, split: str, *, size: int) -> _Drawing:
    """The scene of this number: wide or high, with one to five objects."""
    epoch = [*_ADE].index(split)  # other random numbers for each split
    uniform = iter(uniforms(number, epoch, Stream.ORDER, np.zeros(1), 2000)[0].tolist())

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(uniform)

    sides = size, round(between(0.75, 1) * size)
    height, width = sides if between(0, 1) < 0.5 else sides[::-1]
    pixels, labels = _background((height, width), horizon=between(0.35, 0.65), key=(number, epoch))
    objects: list[tuple[int, np.ndarray]] = []
    boxes = np.zeros((0, 4))
    crowd = None
    if number == 0:
        crowd = np.zeros((height, width), bool)
        middle, colour = np.array([width, height]) * (0.3, 0.7), _colour(between(0, 1), 1)
        for _ in range(12):
            spot = middle + np.array([between(-0.15, 0.15), between(-0.15, 0.15)]) * size
            crowd |= _paint(pixels, labels, spot + np.array(_OUTLINES["disc"]) * size / 32, label=2, colour=colour)
        boxes = _boxes_with(boxes, middle - 0.2 * size, middle + 0.2 * size)
    for _ in range(0 if number == 1 else int(between(1, 6))):
        label, side, upside = 1 + int(between(0, len(SHAPES))), size * 2 ** between(-3, -1), between(-1, 1)
        stretch = np.array([1, 1] if SHAPES[label - 1] in ("disc", "cross") else [1, between(0.6, 1)])
        half, colour = stretch[:: 1 if between(0, 1) < 0.5 else -1] * side / 2, _colour(between(0, 1), between(0.6, 1))
        for _ in range(_TRIES):
            middle = np.array([between(half[0], width - half[0]), between(half[1], height - half[1])])
            if _covered(boxes, middle - half, middle + half) <= _OVERLAP:
                corners = (middle + np.array(_OUTLINES[SHAPES[label - 1]]) * half * (1, np.sign(upside))).round(2)
                _paint(pixels, labels, corners, label=label, colour=colour)
                objects.append((label, corners))
                boxes = _boxes_with(boxes, middle - half, middle + half)
                break
    return _Drawing(pixels, labels, objects, crowd)


def _boxes_with(boxes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes, [[*low, *high]]])


def _covered(boxes: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The largest share that a box from low to high has in common with one of the boxes, of the smaller one's area."""
    if not len(boxes):
        return 0.0
    common = np.clip(np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low), 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return float((common / np.minimum(areas, (high - low).prod())).max())


def _background(shape: tuple[int, int], *, horizon: float, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of sky above ground: noise of two scales, and a line of `other` between."""
    height, width = shape
    noise = uniforms(*key, Stream.NOISE, np.arange(height * width), 3).reshape(height, width, 3) - 0.5
    shift, coarse = uniforms(*key, Stream.JITTER, np.arange(2), 3) - 0.5, noise[::8, ::8]
    edge = round(horizon * height)
    pixels = np.empty((height, width, 3))
    pixels[:edge] = np.array([150, 180, 215]) + 60 * shift[0]
    pixels[edge:] = np.array([120, 105, 75]) + 60 * shift[1]
    pixels += 50 * noise + 50 * coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    labels = np.full(shape, 1 + len(SHAPES), np.uint8)
    labels[edge:] += 1
    labels[edge - 1 : edge + 1] = 0
    return pixels.clip(0, 255).astype(np.uint8), labels


def _colour(hue: float, value: float) -> np.ndarray:
    """(3,) RGB of a strong colour."""
    hsv = Image.new("HSV", (1, 1), (int(256 * hue), 230, int(255 * value)))
    return np.asarray(hsv.convert("RGB"))[0, 0].astype(float)


def _paint(
    pixels: np.ndarray, labels: np.ndarray, corners: np.ndarray, *, label: int, colour: np.ndarray
) -> np.ndarray:
    """Paint a polygon into pixels and labels; returns where it is, (h, w) bool."""
    height, width = labels.shape
    fine = Image.new("L", (width * _FINER, height * _FINER))
    points = [(x, y) for x, y in (corners * _FINER - 0.5).tolist()]  # a pixel's middle is a whole number
    ImageDraw.Draw(fine).polygon(points, fill=255)
    share = np.asarray(fine.resize((width, height), Image.Resampling.BOX))[..., None] / 255
    texture = 0.15 * (pixels.astype(float) - 128)  # what is before noise is not perfectly even
    pixels[:] = ((1 - share) * pixels + share * (colour + texture).clip(0, 255)).astype(np.uint8)
    inside = share[..., 0] >= 0.5
    labels[inside] = label
    return inside
