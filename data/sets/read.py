"""Read an image set, however it is stored: class folders, class folders with a manifest, or a CSV list.

A list has the header `split,path,class` and a row per image; paths are relative to the CSV.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from cotnet.errors import DataError
from data.sets.image_set import EXTENSIONS, ImageSet, complete_set, some, visible
from data.sets.manifest import load_manifest, manifest_split

HEADER: Final = ("split", "path", "class")
WORDS: Final = "words.json"  # in the set's folder: {class: words}


def read_split(root: Path, split: str) -> ImageSet:
    """The images of one split. No image is opened.

    root: the folder that holds the splits, or a CSV list. Raises DataError for a missing or empty folder, a class
    without a supported image, a malformed list, and files that have changed since the manifest was written.
    """
    return _read(root, (split,))[0]


def read_splits(root: Path) -> tuple[ImageSet, ImageSet]:
    """The train and val splits. Raises DataError as `read_split`, and if their classes differ."""
    train, val = _read(root, ("train", "val"))
    require_same_classes(root, train=train.classes, val=val.classes)
    return train, val


def _read(root: Path, splits: Sequence[str]) -> list[ImageSet]:
    if root.is_file():
        return [_read_list(root, split) for split in splits]
    manifest = load_manifest(root)  # once: it may list 1.28 M files
    if manifest is None:
        return [read_folders(root, split) for split in splits]
    return [manifest_split(root, split, content=manifest) for split in splits]


def _read_list(path: Path, split: str) -> ImageSet:
    try:
        with path.open(newline="") as file:
            first, *rows = [*csv.reader(file)] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = f"cannot be read as a CSV list ({error}); its first line is {','.join(HEADER)}"
        raise DataError(f"{path}: {reason}") from error
    if first != list(HEADER):
        raise DataError(f"{path}: the first line is not {','.join(HEADER)}; add it")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(HEADER) or not all(row):
            raise DataError(f"{path}: line {number} has not the {len(HEADER)} values {','.join(HEADER)}")
    chosen = sorted((name, file) for of, file, name in rows if of == split)
    if not chosen:
        raise DataError(f"{path}: no row of split {split}; a list needs rows of train and of val")
    files = tuple(file for _, file in chosen)
    if unknown := [file for file in files if not file.lower().endswith(EXTENSIONS)]:
        raise DataError(f"{path}: unsupported files {some(unknown)}; known endings are {', '.join(EXTENSIONS)}")
    names, numbers = np.unique([name for name, _ in chosen], return_inverse=True)
    classes, labels = tuple(names.tolist()), numbers.astype(np.int64)
    return complete_set(path.parent, files, labels=labels, classes=classes)


def read_folders(root: Path, split: str) -> ImageSet:
    """root/split/class/image, without a manifest. Errors as `list_folders`, and a class without supported images."""
    names = list_folders(root, split)
    images = {name: [file for file in found if file.lower().endswith(EXTENSIONS)] for name, found in names.items()}
    if empty := [name for name, found in images.items() if not found]:
        present = sorted({Path(file).suffix or "(none)" for name in empty for file in names[name]})
        found = f" but files ending in {some(present)}" if present else ""
        plural = "s" if len(empty) > 1 else ""
        raise DataError(
            f"{root / split}: class folder{plural} {some(empty)} without supported images{found}; "
            f"add some ({', '.join(EXTENSIONS)}) or remove the folder{plural}"
        )
    files, classes = tuple(f"{name}/{file}" for name, found in images.items() for file in found), tuple(images)
    labels = np.repeat(np.arange(len(images), dtype=np.int64), [len(found) for found in images.values()])
    return complete_set(root / split, files, labels=labels, classes=classes)


def list_folders(root: Path, split: str) -> dict[str, list[str]]:
    """The sorted file names in each class folder root/split/class, without hidden ones; no file is opened.

    Raises DataError for a missing folder, a folder without class folders, and one that cannot be listed.
    """
    folder = root / split
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give one that holds train/ and val/ with a folder per class")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {root} must hold train/ and val/ with a folder per class")
    try:
        classes = sorted(entry.name for entry in visible(folder) if entry.is_dir())
        names = {name: sorted(entry.name for entry in visible(folder / name)) for name in classes}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error
    if not classes:
        raise DataError(f"{folder}: no class folders in it; images belong in {split}/<class>/")
    return names


def require_same_classes(root: Path, *, train: Sequence[str], val: Sequence[str]) -> None:
    """Raise DataError if the splits have different classes."""
    only = {"train": sorted(set(train) - set(val)), "val": sorted(set(val) - set(train))}
    if any(only.values()):
        differences = "; ".join(f"only in {split}: {some(names)}" for split, names in only.items() if names)
        raise DataError(f"{root}: train and val have different classes; {differences}")


def class_words(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """What people call each class.

    From root/words.json ({class: words}), for a list LIST.csv from LIST.words.json beside it. Without such a file:
    torchvision's names for ImageNet's 1,000 synsets, and for other sets the class names themselves. Raises DataError
    for a malformed file.
    """
    path = root.with_suffix(f".{WORDS}") if root.is_file() else root / WORDS
    if path.is_file():
        try:
            words = {str(name): str(word) for name, word in json.loads(path.read_bytes()).items()}
        except (ValueError, AttributeError) as error:
            raise DataError(f"{path}: not a JSON object of class: words; mend or remove it") from error
        return tuple(words.get(name, name) for name in classes)
    if len(classes) == 1000 and classes[0] == "n01440764" and classes[-1] == "n15075141":
        from torchvision.models import ResNet50_Weights  # here, because the import takes seconds

        return tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    return tuple(classes)
