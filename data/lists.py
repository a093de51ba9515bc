"""Image sets as CSV files: a header `split,path,class`, then a row per image; paths are relative to the CSV's folder.

A list needs no copies: a subset of a set is a list of some of its files.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from cotnet.files import write_text
from data.commands import claimed
from data.draws import Stream, hashes
from data.samples import EXTENSIONS, WORDS, DataError, ImageSet, class_words, fingerprint, read_splits, some

_HEADER: Final = ["split", "path", "class"]


def read_list(path: Path, split: str) -> ImageSet:
    """One split of a CSV list, sorted by class and path; DataError for a malformed list or a split without images."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV list ({error}); see data.lists for its form") from error
    if not rows or rows[0] != _HEADER:
        raise DataError(f"{path}: the first line is not {','.join(_HEADER)}; add it")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(_HEADER) or not all(row):
            raise DataError(f"{path}: line {number} has not the {len(_HEADER)} values {','.join(_HEADER)}")
    chosen = sorted((name, file) for of, file, name in rows[1:] if of == split)
    if not chosen:
        raise DataError(f"{path}: no row of split {split}; a list needs rows of train and of val")
    if unknown := [file for _, file in chosen if not file.lower().endswith(EXTENSIONS)]:
        raise DataError(f"{path}: unsupported files {some(unknown)}; known endings are {', '.join(EXTENSIONS)}")
    classes = tuple(sorted({name for name, _ in chosen}))
    index = {name: label for label, name in enumerate(classes)}
    files = tuple(file for _, file in chosen)
    labels = np.array([index[name] for name, _ in chosen], dtype=np.int64)
    name = fingerprint(classes, files, labels)
    return ImageSet(root=path.parent, files=files, labels=labels, classes=classes, fingerprint=name, whole=name)


def subset(root: Path, out: Path, *, classes: Sequence[str] | None, share: float | None) -> str:
    """Write a list of some classes of a set, or of a share of each class's training images; returns a line for people.

    The validation split keeps all images of the chosen classes. The share is drawn by hash: the same at every call, and
    a smaller share is part of a larger one. DataError where another process writes the same list.
    """
    if share is not None and not 0 < share <= 1:
        raise DataError(f"--share {share} is not in (0, 1]")
    if out.suffix.lower() != ".csv":
        raise DataError(f"{out}: a list ends in .csv; give another --out")
    train, val = read_splits(root)
    if unknown := sorted(set(classes or ()) - set(train.classes)):
        raise DataError(f"{root}: has no classes {some(unknown)}; it has {some(train.classes)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    written = {"train": 0, "val": 0}
    rows = io.StringIO(newline="")
    writer = csv.writer(rows)
    writer.writerow(_HEADER)
    for split, image_set, part in (("train", train, share), ("val", val, None)):
        for index in _chosen(image_set, classes, part):
            path = os.path.relpath(image_set.path(index), out.parent)
            writer.writerow([split, path, image_set.classes[image_set.labels[index]]])
            written[split] += 1
    words = dict(zip(train.classes, class_words(root, train.classes), strict=True))
    chosen = {name: words[name] for name in classes or train.classes} if _tell_more(words) else None
    with claimed(out):
        if chosen:
            write_text(out.with_suffix(f".{WORDS}"), json.dumps(chosen, indent=0, ensure_ascii=False))
        else:
            out.with_suffix(f".{WORDS}").unlink(missing_ok=True)  # of an earlier list
        write_text(out, rows.getvalue())
    count = len(classes) if classes else len(train.classes)
    return f"{out}: {written['train']} training and {written['val']} validation images of {count} classes"


def _tell_more(words: dict[str, str]) -> bool:
    """Whether people call any class otherwise than its name."""
    return any(name != word for name, word in words.items())


def _chosen(image_set: ImageSet, classes: Sequence[str] | None, share: float | None) -> Iterator[int]:
    keys = hashes(0, 0, Stream.ORDER, np.arange(len(image_set.files)))
    for label, name in enumerate(image_set.classes):
        if classes and name not in classes:
            continue
        members = np.flatnonzero(image_set.labels == label)
        if share is not None:
            members = np.sort(members[np.argsort(keys[members])[: max(1, round(share * len(members)))]])
        yield from members.tolist()
