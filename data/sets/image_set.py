"""What an image set is, the files of a split with their classes and labels, and what one of its files is."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cotnet.errors import DataError

# Formats, by PIL's name, that both loaders decode alike, with their endings. DALI refuses GIF, AVIF and HEIC.
FORMATS: Final = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}
EXTENSIONS: Final = tuple(ending for endings in FORMATS.values() for ending in endings)
DECODING_ERRORS: Final = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # PIL raises all of these

# Some ImageNet files have corrupt EXIF data. Nothing here uses it, and the warning does not name the file.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One split of an image set: N files, sorted by class and name."""

    root: Path  # folder of the split
    files: tuple[str, ...]  # N paths below root
    labels: np.ndarray  # (N,) int64, index into classes
    classes: tuple[str, ...]  # sorted by code point, as in torchvision's ImageFolder
    fingerprint: str  # of classes, files and labels, with excluded files; the same wherever the set lies
    sizes: np.ndarray | None = None  # (N, 2) int64: height, width as stored; None if not known yet
    excluded: int = 0  # number of excluded files
    left_out: tuple[int, ...] = ()  # positions of the excluded images in the full set, ascending

    def path(self, index: int) -> Path:
        """Path of an image. Indices of a plan may exceed N; the file index is `index % N`."""
        return self.root / self.files[index % len(self.files)]


def complete_set(root: Path, files: tuple[str, ...], *, labels: np.ndarray, classes: tuple[str, ...]) -> ImageSet:
    """A set without excluded files."""
    digest = fingerprint(classes, files, labels=labels)
    return ImageSet(root=root, files=files, labels=labels, classes=classes, fingerprint=digest)


def fingerprint(classes: Sequence[str], files: Sequence[str], *, labels: np.ndarray) -> str:
    """SHA-256 (hex) of the class names, the file names below the split and the labels."""
    digest = hashlib.sha256()
    for names in (classes, files):
        digest.update(f"{len(names)}\n".encode())
        digest.update(os.fsencode("\n".join(names)))
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, without hidden ones. 1.28 M take seconds."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first names and the number of the others, for a message."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width in pixels as stored, from the file's header; EXIF orientation is ignored.

    Raises DataError for a missing, empty or damaged file.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except DECODING_ERRORS as error:
        raise damaged(path, error) from error


def decoding_error(path: Path | str) -> Exception | None:
    """PIL's error for a file that it cannot decode, else None."""
    try:
        with Image.open(path) as image:
            image.load()
    except DECODING_ERRORS as error:
        return error
    return None


def thumbnail(path: Path | str, side: int) -> Image.Image | None:
    """The image at most `side` pixels high and wide; None for a file that PIL cannot decode."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * side, 2 * side))  # large JPEGs decode faster at a part of their size
            small = image.convert("RGB")
    except DECODING_ERRORS:
        return None
    small.thumbnail((side, side))
    return small


class DamagedImageError(DataError):
    """A file that is missing or does not decode."""

    def __init__(self, path: Path | str, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.path, self.reason, self._remedy = Path(path), reason, remedy

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:  # from a worker process
        return type(self), (self.path, self.reason, self._remedy)


def damaged(path: Path | str, error: Exception) -> DamagedImageError:
    """The one-line error for a file that does not decode."""
    if isinstance(error, FileNotFoundError):
        return DamagedImageError(path, "the image has vanished", "restore it or read the set anew")
    return DamagedImageError(
        path, damaged_reason(error), "replace or remove it, or let python -m data.check exclude it"
    )


def damaged_reason(error: Exception) -> str:
    """Why a file does not decode, on one line, without its path."""
    reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else " ".join(str(error).split())
    return f"damaged image ({reason})"
