"""Read an image set, however it is stored: class folders, class folders with a manifest, or a CSV list."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cotnet.errors import DataError
from data.sets.csv_list import read_list
from data.sets.folders import read_folders
from data.sets.image_set import ImageSet, some
from data.sets.manifest import load_manifest, manifest_split

WORDS: Final = "words.json"  # in the set's folder: {class: words}


def read_split(root: Path, split: str) -> ImageSet:
    """The images of one split. No image is opened.

    root: the folder that holds the splits, or a CSV list. Raises DataError for a missing or empty folder, a class
    without a supported image, a malformed list, and files that have changed since the manifest was written.
    """
    if root.is_file():
        return read_list(root, split)
    return _read_folder(root, split, content=load_manifest(root))


def read_splits(root: Path) -> tuple[ImageSet, ImageSet]:
    """The train and val splits. Raises DataError as `read_split`, and if their classes differ."""
    if root.is_file():
        train, val = read_list(root, "train"), read_list(root, "val")
    else:
        content = load_manifest(root)  # once: it may list 1.28 M files
        train, val = (_read_folder(root, split, content=content) for split in ("train", "val"))
    require_same_classes(root, train=train.classes, val=val.classes)
    return train, val


def _read_folder(root: Path, split: str, *, content: Mapping[str, Any] | None) -> ImageSet:
    return read_folders(root, split) if content is None else manifest_split(root, split, content=content)


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
