"""One image file: its size, and why it does not decode."""

import warnings
from pathlib import Path
from typing import Final

from PIL import Image

from cotnet.errors import DataError

DECODING_ERRORS: Final = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # PIL raises all of these

# Some ImageNet files have corrupt EXIF data. Nothing here uses it, and the warning does not name the file.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)


class DamagedImageError(DataError):
    """A file that is missing or does not decode."""

    def __init__(self, path: Path | str, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.path, self.reason, self._remedy = Path(path), reason, remedy

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:  # from a worker process
        return type(self), (self.path, self.reason, self._remedy)


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
