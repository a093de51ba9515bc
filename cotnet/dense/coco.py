"""COCO's annotations (Lin et al., "Microsoft COCO", 2014): read once into arrays, checked, drawn image by image."""

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cotnet.dense.masks import coco_tools, drawn
from cotnet.errors import DataError
from data.sets.image_set import some, visible


class Objects(NamedTuple):
    """The n objects of an image, in pixels of the file (h, w)."""

    boxes: np.ndarray  # (n, 4) float32: x1, y1, x2, y2
    labels: np.ndarray  # (n,) int64, from 1
    crowd: np.ndarray  # (n,) bool: a crowd, which is no object to learn
    masks: np.ndarray | None  # (n, h, w) uint8, 0 or 1; None if the set was read without masks


@dataclass(frozen=True, kw_only=True)
class CocoSet:
    """N images of one split in the file's order, with M objects sorted by image. Arrays, which forked workers share."""

    root: Path  # folder of the images
    annotations: Path  # the annotation file
    files: tuple[str, ...]  # N paths below root
    sizes: np.ndarray  # (N, 2) int64: height, width
    image_ids: np.ndarray  # (N,) int64, of the file
    categories: tuple[str, ...]  # K names in the order of their ids: label l is categories[l - 1]
    category_ids: np.ndarray  # (K,) int64, of the file
    fingerprint: str  # SHA-256 (hex) of the annotation file, which holds names, sizes and annotations
    dropped: dict[str, int]  # what was left out, in words, and how much
    objects: Objects  # of all images, without masks
    first: np.ndarray  # (N + 1,) int64: the objects of image i are first[i] to first[i + 1]
    rows: np.ndarray  # (M,) int64: places in the annotation file
    source: "_Annotations"

    def truth(self, index: int) -> Objects:
        """The objects of an image. Raises DataError for a mask that cannot be drawn."""
        part = slice(self.first[index], self.first[index + 1])
        size, source = self.sizes[index].tolist(), self.source
        boxes, labels, crowd, masks = self.objects
        if source.masks:
            masks = np.array([source.mask(row, size) for row in self.rows[part].tolist()], np.uint8).reshape(-1, *size)
        return Objects(boxes[part], labels[part], crowd[part], masks)


def read_coco(root: Path, split: Literal["train", "val"], *, masks: bool) -> CocoSet:
    """root/annotations/instances_{split}2017.json and the images in root/{split}2017/; no image is opened.

    Training leaves out crowds and images without an object; evaluation keeps every image. Boxes are cut at the image's
    border. Raises DataError for files that are missing, damaged or do not fit together.
    """
    source = _Annotations(root / "annotations" / f"instances_{split}2017.json", masks=masks)
    content, fingerprint = source.read()
    try:
        ids, files, *sides = zip(*content["images"], strict=True)
        image_ids, sizes = np.array(ids, np.int64), np.array(sides, np.int64).T
        categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
        category_ids = np.array(sorted(categories), np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise source.wrong("has not COCO's `images` with id, height and width, and `categories`") from error
    if len(set(ids)) < len(ids) or not (sizes > 0).all() or not categories:
        raise source.wrong("has two images of one id, an image of no size, or no category")
    image = source.positions(image_ids.tolist(), source.images, what="image")
    label = 1 + source.positions(category_ids.tolist(), source.categories, what="category")
    boxes, keep, dropped = source.usable(sizes[image])
    crowd = np.array(source.crowd, bool)
    used = np.ones(len(ids), bool)
    if split == "train":
        dropped["crowds"] = int((keep & crowd).sum())
        keep &= ~crowd
        used = np.bincount(image[keep], minlength=len(ids)) > 0
        dropped["images without an object"] = int((~used).sum())
    if not used.any():
        raise source.wrong("no image has an object")
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(image[rows], kind="stable")]
    chosen = tuple(str(files[index]) for index in np.flatnonzero(used))
    folder = root / f"{split}2017"
    require_files(folder, chosen, named_by=source.path)
    return CocoSet(
        root=folder,
        annotations=source.path,
        files=chosen,
        sizes=sizes[used],
        image_ids=image_ids[used],
        categories=tuple(categories[number] for number in category_ids.tolist()),
        category_ids=category_ids,
        fingerprint=fingerprint,
        dropped={words: count for words, count in dropped.items() if count},
        objects=Objects(boxes[rows].astype(np.float32), label[rows], crowd[rows], None),
        first=np.searchsorted((np.cumsum(used) - 1)[image[rows]], np.arange(used.sum() + 1)),
        rows=rows,
        source=source,
    )


def require_files(folder: Path, files: Sequence[str], *, named_by: Path) -> None:
    """Raise DataError unless all files are below the folder. Lists folders: a look at each file is slow on networks."""
    there: set[str] = set()
    for part in {name.rpartition("/")[0] for name in files}:
        try:
            there |= {f"{part}/{entry.name}".lstrip("/") for entry in visible(folder / part)}
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); it holds the images") from error
    if missing := [name for name in files if name not in there]:
        count = f"{len(missing)} of the {len(files)} images that {named_by} names are missing"
        raise DataError(f"{folder}: {count}, the first is {missing[0]}; copy them there")


def require_same_categories(train: CocoSet, val: CocoSet) -> None:
    """Raise DataError if the splits have other categories, or other ids for them."""
    splits = [dict(zip(each.category_ids.tolist(), each.categories, strict=True)) for each in (train, val)]
    if other := sorted(str(name) for _, name in splits[0].items() ^ splits[1].items()):
        raise DataError(f"{val.annotations}: other categories or ids than {train.annotations.name}: {some(other)}")


class _Annotations:
    """The A annotations of a file while it is parsed. As Python objects those of COCO take gigabytes."""

    def __init__(self, path: Path, *, masks: bool) -> None:
        self.path, self.masks = path, masks
        self.ids, self.images, self.categories, self.crowd = array("q"), array("q"), array("q"), array("b")
        self.boxes = array("d")  # x, y, width, height
        self.polygons = array("q", [0])  # so many up to each annotation
        self.ends, self.points = array("q", [0]), array("d")  # of each polygon: end in the points x, y, x, y, ...
        self.runs: dict[int, dict[str, Any]] = {}  # masks as compressed run lengths, by place
        self.short = 0  # polygons of two points

    def wrong(self, what: str) -> DataError:
        """The one-line error."""
        return DataError(f"{self.path}: {what}; mend the file or copy it again")

    def read(self) -> tuple[Any, str]:
        """The rest of the file, with images as (id, name, height, width), and the file's SHA-256."""
        if self.masks:
            coco_tools()
        try:
            content = self.path.read_bytes()
            fingerprint, text = hashlib.sha256(content).hexdigest(), content.decode()
            del content  # 450 MB of COCO
            return json.loads(text, object_hook=self._take), fingerprint
        except OSError as error:
            known = "the folder of a COCO set holds annotations/ with instances_train2017.json and instances_val2017"
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); {known}.json") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self.wrong(f"no JSON, or cut off ({error})") from error

    def _take(self, found: dict[str, Any]) -> Any:
        """json's object_hook: stores an annotation, shortens an image."""
        if "image_id" not in found:
            image = "id", "file_name", "height", "width"
            return tuple(map(found.get, image)) if "file_name" in found else found
        try:
            self.ids.append(found["id"])
            self.images.append(found["image_id"])
            self.categories.append(found["category_id"])
            self.crowd.append(found.get("iscrowd", 0))
            self.boxes.extend(found["bbox"])
            if len(self.boxes) != 4 * len(self.ids):
                raise ValueError("a box has four numbers")
            if self.masks:
                self._outline(found.get("segmentation") or [])
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            reason = "a value of the wrong kind" if isinstance(error, (TypeError, RuntimeError)) else str(error)
            reason = f"no {error}" if isinstance(error, KeyError) else reason
            raise self.wrong(f"annotation {found.get('id')} is malformed ({reason})") from error
        return None

    def _outline(self, outline: list[list[float]] | dict[str, Any]) -> None:
        if isinstance(outline, dict):
            height, width = outline["size"]
            runs = outline["counts"]
            if isinstance(runs, list) and (min(runs) < 0 or sum(runs) != height * width):
                raise ValueError("its run lengths do not fill its size")
            packed = coco_tools().mask.frPyObjects(outline, height, width) if isinstance(runs, list) else outline
            self.runs[len(self.ids) - 1], outline = packed, []
        for polygon in outline:
            if len(polygon) < 6:
                self.short += 1
                continue
            if len(polygon) % 2:
                raise ValueError("a polygon with an x without y")
            self.points.extend(polygon)
            self.ends.append(len(self.points))
        self.polygons.append(len(self.ends) - 1)

    def positions(self, known: Sequence[int], ids: Sequence[int], *, what: str) -> np.ndarray:
        """(A,) place of each id among the known ones. Raises DataError for an unknown one."""
        places = {number: place for place, number in enumerate(known)}
        if unknown := [row for row, number in enumerate(ids) if number not in places]:
            name = f"annotation {self.ids[unknown[0]]} is of the unknown {what} {ids[unknown[0]]}"
            raise self.wrong(name + (f", and {len(unknown) - 1} more are" if len(unknown) > 1 else ""))
        return np.array([places[number] for number in ids], np.int64)

    def usable(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Boxes (A, 4) within images of these sizes (A, 2), which annotations have a box and a mask, what has not."""
        for row, runs in self.runs.items():
            if list(runs["size"]) != sizes[row].tolist():
                sides = "{}x{}, its image {}x{}".format(*runs["size"], *sizes[row])
                raise self.wrong(f"annotation {self.ids[row]}: the mask is {sides}")
        corner, side = np.split(np.array(self.boxes).reshape(-1, 4), 2, axis=1)
        whole = np.concatenate([corner, corner + side], axis=1)
        boxes = np.clip(whole, 0, sizes[:, [1, 0, 1, 0]])
        keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        dropped = {
            "parts of boxes outside the image": int((np.abs(boxes - whole) > 1).any(axis=1).sum()),
            "boxes of no area": int((~keep).sum()),
            "polygons of two points": self.short,
        }
        if self.masks:
            outlined = np.diff(np.array(self.polygons)) > 0
            outlined[[*self.runs]] = True
            if len(outlined) and not outlined.any():
                raise self.wrong("no annotation has a mask; retinanet, faster_rcnn and cascade_rcnn need none")
            dropped["objects without a mask"] = int((keep & ~outlined).sum())
            keep &= outlined
        return boxes, keep, dropped

    def mask(self, row: int, size: Sequence[int]) -> np.ndarray:
        """The mask (h, w) of an annotation in an image of this size. Raises DataError if it cannot be drawn."""
        ends = self.ends[self.polygons[row] : self.polygons[row + 1] + 1]
        try:
            return drawn(self.runs.get(row) or [self.points[a:b].tolist() for a, b in pairwise(ends)], size)
        except (ValueError, RuntimeError) as error:
            raise self.wrong(f"annotation {self.ids[row]}: its mask cannot be drawn ({error})") from error
