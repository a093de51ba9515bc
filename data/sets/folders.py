"""Image sets as folders: root/split/class/image. No image is opened, and no file is asked for its status."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cotnet.errors import DataError
from data.sets.image_set import EXTENSIONS, ImageSet, complete_set, some


def read_folders(root: Path, split: str) -> ImageSet:
    """One split as its class folders hold it. Raises DataError for a class without a supported image."""
    images = _supported(root / split, list_folders(root, split))
    files = tuple(f"{name}/{file}" for name, found in images.items() for file in found)
    labels = np.repeat(np.arange(len(images), dtype=np.int64), [len(found) for found in images.values()])
    return complete_set(root / split, files, labels=labels, classes=tuple(images))


def list_folders(root: Path, split: str) -> dict[str, list[str]]:
    """The sorted file names in each class folder root/split/class, without hidden ones.

    Raises DataError for a missing folder, a folder without class folders, and one that cannot be listed.
    """
    folder = root / split
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give one that holds train/ and val/ with a folder per class")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {root} must hold train/ and val/ with a folder per class")
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        names = {name: sorted(file_names(folder / name)) for name in classes}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error
    if not classes:
        raise DataError(f"{folder}: no class folders in it; images belong in {split}/<class>/")
    return names


def file_names(folder: Path) -> list[str]:
    """The names in a class folder, without hidden ones. 1.28 M names take seconds."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.name.startswith(".")]


def _supported(folder: Path, names: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The supported images of each class."""
    images = {name: [file for file in found if file.lower().endswith(EXTENSIONS)] for name, found in names.items()}
    empty = [name for name, found in images.items() if not found]
    if not empty:
        return images
    present = sorted({Path(file).suffix or "(none)" for name in empty for file in names[name]})
    found = f" but files ending in {some(present)}" if present else ""
    plural = "s" if len(empty) > 1 else ""
    raise DataError(
        f"{folder}: class folder{plural} {some(empty)} without supported images{found}; "
        f"add some ({', '.join(EXTENSIONS)}) or remove the folder{plural}"
    )
