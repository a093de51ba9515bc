"""What an image set is: the files of a split, their classes and labels."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

# What both loaders decode alike; GIF, AVIF and HEIC are left out because DALI refuses them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class DataError(ValueError):
    """The images a person gave, or the settings for them, are wrong; one line: what, where, what to do."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One split of an image set, N images.

    root: folder of the split; files: N paths below it, sorted by (class, name); labels: (N,) int64, index into classes;
    classes: sorted by code point, as torchvision's ImageFolder sorts them; fingerprint: sha256 over classes, files and
    labels, which names the set wherever it lies.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str

    def path(self, index: int) -> Path:
        """Full path of one image."""
        return self.root / self.files[index]


def fingerprint(classes: Sequence[str], files: Sequence[str], labels: np.ndarray) -> str:
    """sha256 (hex) over the class names, the file names below the split and the labels."""
    digest = hashlib.sha256()
    for names in (classes, files):
        digest.update(f"{len(names)}\n".encode())
        digest.update(os.fsencode("\n".join(names)))
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def read_split(root: Path, split: str) -> ImageSet:
    """The images under root/split/<class>/, listed without opening one.

    Raises DataError for a missing or empty folder and for a class folder without a supported image.
    """
    folder = root / split
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give one that holds train/ and val/ with a folder per class")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {root} must hold train/ and val/ with a folder per class")
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        names = [sorted(_image_names(folder / name)) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error
    if not classes:
        raise DataError(f"{folder}: no class folders in it; images belong in {split}/<class>/")
    if empty := [name for name, found in zip(classes, names, strict=True) if not found]:
        raise DataError(_empty_message(folder, empty))
    files = tuple(f"{name}/{file}" for name, found in zip(classes, names, strict=True) for file in found)
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in names])
    return ImageSet(
        root=folder,
        files=files,
        labels=labels,
        classes=tuple(classes),
        fingerprint=fingerprint(classes, files, labels),
    )


def read_splits(root: Path) -> tuple[ImageSet, ImageSet]:
    """The train and val splits under root; DataError where they do not have the same classes."""
    train, val = read_split(root, "train"), read_split(root, "val")
    if train.classes != val.classes:
        differences = [
            f"only in {split}: {_some(sorted(set(mine.classes) - set(other.classes)))}"
            for split, mine, other in (("train", train, val), ("val", val, train))
            if set(mine.classes) - set(other.classes)
        ]
        raise DataError(f"{root}: train and val have different classes; {'; '.join(differences)}")
    return train, val


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width in pixels as stored (EXIF orientation is not applied), read from the file's header.

    Raises DataError where the file is missing, empty or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise damaged(path, error) from error
    return height, width


def damaged(path: Path | str, error: Exception) -> DataError:
    """The error for a file that does not decode, on one line."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: the image has vanished; restore it or read the set anew")
    reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else " ".join(str(error).split())
    return DataError(f"{path}: damaged image ({reason}); replace or remove it")


def _image_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:  # no stat per file: 1.28 M of them are listed in seconds
        return [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".")
        ]


def _empty_message(folder: Path, empty: list[str]) -> str:
    present = sorted({path.suffix or "(none)" for name in empty for path in (folder / name).iterdir()})
    found = f" but files ending in {_some(present)}" if present else ""
    plural = "s" if len(empty) > 1 else ""
    return (
        f"{folder}: class folder{plural} {_some(empty)} without supported images{found}; "
        f"add some ({', '.join(EXTENSIONS)}) or remove the folder{plural}"
    )


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
