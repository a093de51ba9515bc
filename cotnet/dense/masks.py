"""Masks as the parts of an image that they cover.

Most objects are small: drawing, resizing and sending whole maps took half of the loader's time.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Final, NamedTuple

import numpy as np
import torch

from cotnet.errors import InputError

NO_EXTRA: Final = "faster-coco-eval is not installed; pip install 'cotnet[dense]'"


def run_length_tools() -> ModuleType:
    """faster-coco-eval's `mask`: run lengths of polygons and maps. Raises InputError without the extra `dense`."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise InputError(NO_EXTRA) from None
    return mask


class MaskPart(NamedTuple):
    """A mask within the rows and columns that it covers; the rest of the image is 0."""

    top: int
    left: int
    pixels: np.ndarray  # (rows, columns) uint8, 0 or 1; (0, 0) if nothing is covered


def run_lengths(counts: str | bytes) -> np.ndarray:
    """(runs,) int64 of COCO's compressed run lengths, those of zeros first. Raises ValueError for other text.

    Each character holds five bits, the lowest first, and whether more follow; the fifth bit of the last is the sign.
    From the fourth run on, the difference to the run before the last is written (pycocotools, maskApi.c, rleFrString).
    """
    codes = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not len(last) or last[-1] != len(codes) - 1:
        raise ValueError("no compressed run lengths")
    first = np.concatenate([[0], last[:-1] + 1])
    shifts = 5 * (np.arange(len(codes)) - first.repeat(last + 1 - first))
    if shifts.max() > 50:
        raise ValueError("a run of more pixels than any image has")
    runs = np.add.reduceat((codes & 31) << shifts, first) - np.where(codes[last] & 16, 32 << shifts[last], 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def part_of(counts: str | bytes, size: Sequence[int]) -> MaskPart:
    """The mask of compressed run lengths in an image of this size (h, w); runs go down the columns.

    Raises ValueError if they do not fill the image.
    """
    runs, (height, width) = run_lengths(counts), size
    ends = runs.cumsum()
    if (runs < 0).any() or ends[-1] != height * width:
        raise ValueError("its run lengths do not fill its size")
    covered = 2 * np.flatnonzero(runs[1::2]) + 1
    if not len(covered):
        return MaskPart(0, 0, np.zeros((0, 0), np.uint8))
    left, right = int(ends[covered[0] - 1]) // height, (int(ends[covered[-1]]) - 1) // height + 1
    lengths = np.diff(ends.clip(left * height, right * height), prepend=left * height)
    columns = (np.arange(len(runs)) & 1).astype(np.uint8).repeat(lengths).reshape(right - left, height)
    rows = np.flatnonzero(columns.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return MaskPart(top, left, np.ascontiguousarray(columns[:, top:bottom].T))


def resampled(part: MaskPart, rows: np.ndarray, columns: np.ndarray) -> MaskPart:
    """What of the part lies under these rows and columns, each in ascending or descending order."""
    (height, width), places = part.pixels.shape, []
    for start, side, lines in ((part.top, height, rows), (part.left, width, columns)):
        inside = np.flatnonzero((lines >= start) & (lines < start + side))
        places.append((int(inside[0]) if len(inside) else 0, lines[inside] - start))
    (top, down), (left, across) = places
    return MaskPart(top, left, part.pixels[:, across][down])  # columns first: then rows are copied whole


def flattened(parts: Sequence[MaskPart]) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels of n parts one after the other, uint8; their top, left, height and width, (n, 4) int64."""
    pixels = [np.zeros(0, np.uint8), *(part.pixels.ravel() for part in parts)]
    places = [[part.top, part.left, *part.pixels.shape] for part in parts]
    return torch.from_numpy(np.concatenate(pixels)), torch.tensor(places, dtype=torch.int64).view(-1, 4)


def pasted(pixels: torch.Tensor, places: Sequence[Sequence[int]], size: Sequence[int]) -> torch.Tensor:
    """(n, *size) uint8 of what `flattened` gives, on the device of the pixels."""
    masks, end = pixels.new_zeros(len(places), *size), 0
    for mask, (top, left, height, width) in zip(masks, places, strict=True):
        start, end = end, end + height * width
        mask[top : top + height, left : left + width] = pixels[start:end].view(height, width)
    return masks


def whole(parts: Sequence[MaskPart], size: Sequence[int]) -> np.ndarray:
    """(n, *size) uint8 of n parts."""
    pixels, places = flattened(parts)
    return pasted(pixels, places.tolist(), size).numpy()
