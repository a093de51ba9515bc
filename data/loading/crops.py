"""Crop boxes: what happens to an image between the file and the loader's batch."""

from typing import Final, NamedTuple

import numpy as np

ATTEMPTS: Final = 10  # candidates for a box, as in torchvision's RandomResizedCrop and RandomErasing
CROP_UNIFORMS: Final = 2 * ATTEMPTS + 2


class Geometry(NamedTuple):
    """What happens to n images, in this order. All int64, in pixels, height before width."""

    box: np.ndarray  # (n, 4): top, left, height, width of the region to decode
    size: np.ndarray  # (n, 2): height, width to resize the region to, antialiased
    offset: np.ndarray  # (n, 2): top, left of the crop of (image_size, image_size)
    flip: np.ndarray  # (n,) bool: whether to mirror left-right


def random_crop_boxes(
    sizes: np.ndarray, scale: tuple[float, float], *, ratio: tuple[float, float], uniform: np.ndarray
) -> np.ndarray:
    """(n, 4) int64 top, left, height, width, distributed as torchvision's RandomResizedCrop draws them.

    sizes: (n, 2) height, width. scale: bounds of the share of the area. ratio: bounds of width / height. uniform:
    (n, CROP_UNIFORMS) in [0, 1). The first of ten candidates that fits, or the largest central box within the ratio.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    widths, heights = candidates(height * width, uniform, share=scale, ratio=ratio)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    rows, chosen = np.arange(len(sizes)), fits.argmax(axis=1)
    found = np.stack([heights[rows, chosen], widths[rows, chosen]], axis=1)
    corner = np.floor((sizes - found + 1) * uniform[:, 2 * ATTEMPTS :])
    narrow, wide = width / height < min(ratio), width / height > max(ratio)
    largest_height = np.where(narrow, np.rint(width / min(ratio)), height)  # half to even
    largest_width = np.where(wide, np.rint(height * max(ratio)), width)
    central = np.concatenate([largest_height, largest_width], axis=1)
    any_fits = fits.any(axis=1, keepdims=True)
    size = np.where(any_fits, found, central)
    corner = np.where(any_fits, corner, (sizes - central) // 2)
    return np.concatenate([corner, size], axis=1).astype(np.int64)


def candidates(
    area: np.ndarray | int, uniform: np.ndarray, *, share: tuple[float, float], ratio: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Sides (n, ATTEMPTS) of boxes with a share of the area, uniform within bounds, and with first / second side within
    `ratio`, uniform in its logarithm."""
    areas = area * (share[0] + (share[1] - share[0]) * uniform[:, :ATTEMPTS])
    low, high = np.log(ratio)
    ratios = np.exp(low + (high - low) * uniform[:, ATTEMPTS : 2 * ATTEMPTS])
    return np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))


def central_geometry(sizes: np.ndarray, image_size: int, *, crop_ratio: float) -> Geometry:
    """torchvision's Resize(int(image_size / crop_ratio)) and CenterCrop(image_size).

    The shorter side becomes exactly that, the longer one is cut to an integer, the offset is rounded half to even.
    """
    shorter = int(image_size / crop_ratio)
    short, long = sizes.min(axis=1, keepdims=True), sizes.max(axis=1, keepdims=True)
    size = np.where(sizes == short, shorter, (shorter * long / short).astype(np.int64))
    offset = np.rint((size - image_size) / 2).astype(np.int64)
    box = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    return Geometry(box, size, offset, np.zeros(len(sizes), dtype=bool))
