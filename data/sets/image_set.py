"""What an image set is, the files of a split with their classes and labels, and what one of its files is."""

import hashlib
import os
import struct
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
IGNORED: Final = 255  # in a label map: pixels that count nowhere
JPEG_END: Final = b"\xff\xd9"
_FRAMES: Final = (0xC0, 0xC1, 0xC2)  # headers with the size: baseline, extended, progressive
_SEGMENTS: Final = (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))  # what may stand before: tables, comments, metadata
DEEP_MODES: Final = ("I;16", "I;16B", "I;16L", "I;16N")  # PIL's names for grey of 16 bits
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

    Raises DataError for a missing or empty file, and for one whose header is damaged.
    """
    try:
        if size := _jpeg_size(path):
            return size
        with Image.open(path) as image:
            return image.height, image.width
    except DECODING_ERRORS as error:
        raise damaged(path, error) from error


def _jpeg_size(path: Path | str) -> tuple[int, int] | None:
    """Height and width of a plain JPEG, in a quarter of the time that PIL takes; None for what PIL must judge."""
    with open(path, "rb") as file:  # noqa: PTH123
        if file.read(2) != b"\xff\xd8":
            return None
        while len(head := file.read(4)) == 4 and head[0] == 0xFF:
            kind, length = head[1], int.from_bytes(head[2:])
            if kind in _FRAMES:
                bits, height, width = struct.unpack(">BHH", file.read(5).ljust(5, b"\0"))
                return (height, width) if bits == 8 and height and width else None
            if kind not in _SEGMENTS or length < 2:
                return None
            file.seek(length - 2, os.SEEK_CUR)
    return None


def require_end(path: Path | str) -> None:
    """Raises DataError for a JPEG that was cut off.

    For decoders that do not say so. The bytes of an image never hold its end marker, so a file that was cut does not
    end with it; PIL decides on others, which may carry more data behind the image.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            if file.read(2) != b"\xff\xd8":
                return
            file.seek(-2, os.SEEK_END)
            if file.read(2) == JPEG_END:
                return
    except OSError as error:
        raise damaged(path, error) from error
    if error_found := decoding_error(path):
        raise damaged(path, error_found)


def decoding_error(path: Path | str) -> Exception | None:
    """PIL's error for a file that it cannot decode, else None."""
    try:
        with Image.open(path) as image:
            image.load()
    except DECODING_ERRORS as error:
        return error
    return None


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, 8 bits a channel.

    Grey levels of 16 bits become floor(255 * level / 65535 + 1/2), as the PNG standard recommends (13.12, sample depth
    rescaling) and DALI does; PIL's own conversion cuts them off at 255.
    """
    if image.mode not in DEEP_MODES and (image.mode, image.format) != ("I", "PPM"):
        return image.convert("RGB")
    return Image.fromarray(in_8_bits(np.asarray(image))).convert("RGB")


def in_8_bits(levels: np.ndarray) -> np.ndarray:
    """uint8 levels of levels from 0 to 65535, rounded."""
    return ((levels.astype(np.int32) + 128) // 257).astype(np.uint8)


def thumbnail(path: Path | str, side: int) -> Image.Image | None:
    """The image at most `side` pixels high and wide; None for a file that PIL cannot decode."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * side, 2 * side))  # large JPEGs decode faster at a part of their size
            small = as_rgb(image)
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
