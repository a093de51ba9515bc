"""What an image set is: the files of a split, their classes and labels."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# What both loaders decode alike; GIF, AVIF and HEIC are left out because DALI refuses them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
WORDS = "words.json"  # in the set's folder: {class: words}


# ImageNet has some; nothing here uses EXIF, and the warning names no file.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)


class DataError(ValueError):
    """The images a person gave, or the settings for them, are wrong; one line: what, where, what to do."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One split of an image set, N images.

    root: folder of the split; files: N paths below it, sorted by (class, name); labels: (N,) int64, index into classes;
    classes: sorted by code point, as torchvision's ImageFolder sorts them; fingerprint: sha256 over classes, files and
    labels, which names the set wherever it lies; whole: the fingerprint with the files that a manifest leaves out,
    excluded: their number; left_out: the places, among all files that belonged to the whole, of those left out,
    ascending; sizes: (N, 2) int64 height, width as stored, None where not known yet.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str
    whole: str
    sizes: np.ndarray | None = None
    excluded: int = 0
    left_out: tuple[int, ...] = ()

    def path(self, index: int) -> Path:
        """Full path of one image; a plan's index is that of a file modulo their number."""
        return self.root / self.files[index % len(self.files)]


def fingerprint(classes: Sequence[str], files: Sequence[str], labels: np.ndarray) -> str:
    """sha256 (hex) over the class names, the file names below the split and the labels."""
    digest = hashlib.sha256()
    for names in (classes, files):
        digest.update(f"{len(names)}\n".encode())
        digest.update(os.fsencode("\n".join(names)))
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def list_folders(root: Path, split: str) -> dict[str, list[str]]:
    """The sorted names of the files in each class folder root/split/<class>/, hidden ones left out.

    Raises DataError for a missing folder, one without class folders, and one that cannot be listed.
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
    """What a class folder holds, hidden files left out; no stat per file: 1.28 M of them are listed in seconds."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not entry.name.startswith(".")]


def read_split(root: Path, split: str) -> ImageSet:
    """The images of one split, as the manifest of `python -m data.check` lists them or else as the folders hold them.

    root: the folder that holds the splits, or a CSV list (data.lists). No image is opened. Raises DataError for a
    missing or empty folder, a class folder without a supported image, and a manifest that the folders contradict.
    """
    from data.lists import read_list  # they build on this module
    from data.manifest import load_manifest

    if root.is_file():
        return read_list(root, split)
    return _read(root, split, load_manifest(root))


def read_splits(root: Path) -> tuple[ImageSet, ImageSet]:
    """The train and val splits under root; DataError where they do not have the same classes."""
    from data.manifest import load_manifest

    if root.is_file():
        train, val = read_split(root, "train"), read_split(root, "val")
    else:
        content = load_manifest(root)  # once: it may hold 1.28 M files
        train, val = _read(root, "train", content), _read(root, "val", content)
    require_same_classes(root, train.classes, val.classes)
    return train, val


def require_same_classes(root: Path, train: Sequence[str], val: Sequence[str]) -> None:
    """DataError, naming some, where the two splits' classes differ."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        differences = [
            f"only in {split}: {some(only)}" for split, only in (("train", only_train), ("val", only_val)) if only
        ]
        raise DataError(f"{root}: train and val have different classes; {'; '.join(differences)}")


def _read(root: Path, split: str, content: dict[str, Any] | None) -> ImageSet:
    from data.manifest import manifest_split

    if content is not None:
        return manifest_split(root, split, content)
    images = require_images(root / split, list_folders(root, split))
    files = tuple(f"{name}/{file}" for name, found in images.items() for file in found)
    labels = np.repeat(np.arange(len(images), dtype=np.int64), [len(found) for found in images.values()])
    name = fingerprint(tuple(images), files, labels)
    classes = tuple(images)
    return ImageSet(root=root / split, files=files, labels=labels, classes=classes, fingerprint=name, whole=name)


def require_images(folder: Path, names: dict[str, list[str]]) -> dict[str, list[str]]:
    """The supported ones among the files of each class folder; DataError where a class has none."""
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


def class_words(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """What people call the classes: {class: words} of root/words.json, or of LIST.words.json beside LIST.csv, where
    there is one, torchvision's names for ImageNet's thousand synsets, the classes' own names otherwise."""
    path = root.with_suffix(f".{WORDS}") if root.is_file() else root / WORDS
    if path.is_file():
        try:
            words = {str(name): str(word) for name, word in json.loads(path.read_bytes()).items()}
        except (ValueError, AttributeError) as error:
            raise DataError(f"{path}: not a JSON object of class: words; mend or remove it") from error
        return tuple(words.get(name, name) for name in classes)
    if len(classes) == 1000 and classes[0] == "n01440764" and classes[-1] == "n15075141":
        from torchvision.models import ResNet50_Weights

        return tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    return tuple(classes)


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


def decoding_error(path: Path | str) -> Exception | None:
    """What PIL says about a file that it cannot decode, None where it can."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return error
    return None


def damaged(path: Path | str, error: Exception) -> DataError:
    """The error for a file that does not decode, on one line."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: the image has vanished; restore it or read the set anew")
    return DataError(f"{path}: {damaged_reason(error)}; replace or remove it, or let python -m data.check exclude it")


def damaged_reason(error: Exception) -> str:
    """Why a file does not decode, without its path or a line break."""
    reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else " ".join(str(error).split())
    return f"damaged image ({reason})"


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
