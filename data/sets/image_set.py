"""What an image set is: the files of a split, their classes and labels."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

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


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One split of an image set: N files, sorted by class and name."""

    root: Path  # folder of the split
    files: tuple[str, ...]  # N paths below root
    labels: np.ndarray  # (N,) int64, index into classes
    classes: tuple[str, ...]  # sorted by code point, as in torchvision's ImageFolder
    fingerprint: str  # SHA-256 (hex) of classes, files and labels; the same wherever the set lies
    full_fingerprint: str  # the fingerprint with the files that a manifest excludes
    sizes: np.ndarray | None = None  # (N, 2) int64: height, width as stored; None if not known yet
    excluded: int = 0  # number of excluded files
    left_out: tuple[int, ...] = ()  # positions of the excluded images in the full set, ascending

    def path(self, index: int) -> Path:
        """Path of an image. Indices of a plan may exceed N; the file index is `index % N`."""
        return self.root / self.files[index % len(self.files)]


def complete_set(root: Path, files: tuple[str, ...], *, labels: np.ndarray, classes: tuple[str, ...]) -> ImageSet:
    """A set without excluded files."""
    name = fingerprint(classes, files, labels=labels)
    return ImageSet(root=root, files=files, labels=labels, classes=classes, fingerprint=name, full_fingerprint=name)


def fingerprint(classes: Sequence[str], files: Sequence[str], *, labels: np.ndarray) -> str:
    """SHA-256 (hex) of the class names, the file names below the split and the labels."""
    digest = hashlib.sha256()
    for names in (classes, files):
        digest.update(f"{len(names)}\n".encode())
        digest.update(os.fsencode("\n".join(names)))
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first names and the number of the others, for a message."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
