"""A part of an image set as a CSV list, without copies."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cotnet.errors import DataError
from cotnet.files import write_text
from data.prepare.commands import claimed
from data.prepare.small_sets import share_of_each_class
from data.sets.image_set import ImageSet, some
from data.sets.read import HEADER, WORDS, class_words, read_splits


def subset(root: Path, out: Path, *, classes: Sequence[str] | None, share: float | None) -> str:
    """Write a list of some classes, or of a share of each class's training images; returns the line for people.

    The validation split keeps all images of the chosen classes. Raises DataError for impossible arguments and if
    another process writes the list.
    """
    if share is not None and not 0 < share <= 1:
        raise DataError(f"--share {share} is not in (0, 1]")
    if out.suffix.lower() != ".csv":
        raise DataError(f"{out}: a list ends in .csv; give another --out")
    train, val = read_splits(root)
    if unknown := sorted(set(classes or ()) - set(train.classes)):
        raise DataError(f"{root}: has no classes {some(unknown)}; it has {some(train.classes)}")
    chosen = classes or train.classes
    rows = {"train": _rows(train, out.parent, classes=chosen, share=1.0 if share is None else share)}
    rows["val"] = _rows(val, out.parent, classes=chosen, share=1.0)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([HEADER, *((split, *row) for split, part in rows.items() for row in part)])
    words = dict(zip(train.classes, class_words(root, train.classes), strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    with claimed(out):
        _write_words(out.with_suffix(f".{WORDS}"), {name: words[name] for name in chosen})
        write_text(out, text.getvalue())
    counts = f"{len(rows['train'])} training and {len(rows['val'])} validation images"
    return f"{out}: {counts} of {len(chosen)} classes"


def _rows(image_set: ImageSet, folder: Path, *, classes: Sequence[str], share: float) -> list[tuple[str, str]]:
    """(path relative to the folder, class) of the chosen images."""
    wanted = np.isin(image_set.labels, [label for label, name in enumerate(image_set.classes) if name in classes])
    indices = np.flatnonzero(wanted & share_of_each_class(image_set.labels, share)).tolist()
    return [(os.path.relpath(image_set.path(i), folder), image_set.classes[image_set.labels[i]]) for i in indices]


def _write_words(path: Path, words: dict[str, str]) -> None:
    """Write the words if any differs from its class name, else remove an earlier list's."""
    if any(name != word for name, word in words.items()):
        write_text(path, json.dumps(words, indent=0, ensure_ascii=False))
    else:
        path.unlink(missing_ok=True)
