"""Decoding by PIL to the pixels that DALI decodes."""

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from data.sets.image_set import as_rgb, in_8_bits

_DEPTH: Final = 24  # offset in a PNG of the bits a channel


def decoded_rgb(image: Image.Image, path: Path | str) -> Image.Image:
    """An image that PIL has opened from this path, in RGB, 8 bits a channel. Raises DECODING_ERRORS.

    Levels of 16 bits are scaled (see `as_rgb`), those of colour PNGs too, whose lower bytes PIL drops: libpng, through
    torchvision, decodes these. Levels of 8 bits are PIL's.
    """
    if image.format == "PNG" and image.mode in ("RGB", "RGBA") and _bits(path) == 16:
        image.load()  # errors are PIL's
        levels = decode_image(str(path), ImageReadMode.RGB).permute(1, 2, 0).numpy()
        return Image.fromarray(np.ascontiguousarray(in_8_bits(levels)))
    return as_rgb(image)


def _bits(path: Path | str) -> int:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read(_DEPTH + 1)[_DEPTH]
