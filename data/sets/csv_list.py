"""Image sets as CSV files: the header `split,path,class`, then one row per image. Paths are relative to the CSV."""

import csv
from pathlib import Path
from typing import Final

import numpy as np

from cotnet.errors import DataError
from data.sets.image_set import EXTENSIONS, ImageSet, complete_set, some

HEADER: Final = ("split", "path", "class")


def read_list(path: Path, split: str) -> ImageSet:
    """One split of a list. Raises DataError for a malformed list and for a split without images."""
    chosen = sorted((name, file) for of, file, name in _rows(path) if of == split)
    if not chosen:
        raise DataError(f"{path}: no row of split {split}; a list needs rows of train and of val")
    files = tuple(file for _, file in chosen)
    if unknown := [file for file in files if not file.lower().endswith(EXTENSIONS)]:
        raise DataError(f"{path}: unsupported files {some(unknown)}; known endings are {', '.join(EXTENSIONS)}")
    classes, labels = np.unique([name for name, _ in chosen], return_inverse=True)
    return complete_set(path.parent, files, labels=labels.astype(np.int64), classes=tuple(classes.tolist()))


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as a CSV list ({error}); its first line is {','.join(HEADER)}"
        ) from error
    if not rows or rows[0] != list(HEADER):
        raise DataError(f"{path}: the first line is not {','.join(HEADER)}; add it")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(HEADER) or not all(row):
            raise DataError(f"{path}: line {number} has not the {len(HEADER)} values {','.join(HEADER)}")
    return rows[1:]
