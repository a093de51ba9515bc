"""Mixup, cutmix and random erasing on a normalised batch: pure functions of given parameters.

Mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018. Cutmix: Yun et al., "CutMix", 2019, algorithm
A1. Erasing: Zhong et al., "Random Erasing Data Augmentation", 2017, algorithm 1. Both mixtures pair image i with image
n - 1 - i. `lam` is the image's own share, the papers' lambda; boxes are top, left, height, width.
"""

from typing import Final

import numpy as np
import torch
from torch.nn.functional import one_hot

from data.loading.crops import ATTEMPTS, CROP_UNIFORMS, candidates

ERASING_AREA: Final = (0.02, 1 / 3)  # bounds of the erased share of the area
ERASING_RATIO: Final = (0.3, 1 / 0.3)  # bounds of height / width
ERASING_DRAWS: Final = CROP_UNIFORMS + 1


def mixup(images: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """lam x image + (1 - lam) x partner: images (n, C, H, W), lam (n,)."""
    return torch.lerp(images.flip(0), images, lam[:, None, None, None])


def cutmix(images: torch.Tensor, boxes: torch.Tensor, *, originals: torch.Tensor) -> torch.Tensor:
    """Each image (n, C, H, W) with its box (n, 4) from its partner in `originals`, the batch before mixup."""
    return erase(images, boxes, values=originals.flip(0))


def mix_targets(targets: torch.Tensor, lam: torch.Tensor, *, num_classes: int) -> torch.Tensor:
    """Class probabilities (n, num_classes), in lam's dtype, from labels (n,) and lam (n,)."""
    own = one_hot(targets, num_classes).to(lam.dtype)
    return torch.lerp(own.flip(0), own, lam[:, None])


def cutmix_boxes(lam: np.ndarray, uniform: np.ndarray, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) int64, and lam (n,) adjusted to boxes that the border cuts (A1).

    lam: (n,). uniform: (n, 2) in [0, 1), for the centre, uniform over the pixels.
    """
    sides = np.array([height, width])
    half = (sides * np.sqrt(1 - lam)[:, None]).astype(np.int64) // 2
    center = (sides * uniform).astype(np.int64)
    corner = np.maximum(center - half, 0)
    size = np.minimum(center + half, sides) - corner
    return np.concatenate([corner, size], axis=1), 1 - size.prod(axis=1) / (height * width)


def erasing_boxes(probability: float, uniform: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Boxes (n, 4) int64; all zero if nothing is erased.

    uniform: (n, ERASING_DRAWS) in [0, 1). The first of ten candidates that is smaller than the image.
    """
    heights, widths = candidates(height * width, uniform, share=ERASING_AREA, ratio=ERASING_RATIO)
    fits = (heights < height) & (widths < width)
    rows, chosen = np.arange(len(uniform)), fits.argmax(axis=1)
    size = np.stack([heights[rows, chosen], widths[rows, chosen]], axis=1)
    corner = np.floor((np.array([height, width]) - size + 1) * uniform[:, 2 * ATTEMPTS : CROP_UNIFORMS])
    erased = (uniform[:, -1] < probability) & fits.any(axis=1)
    return np.where(erased[:, None], np.concatenate([corner, size], axis=1), 0).astype(np.int64)


def erase(images: torch.Tensor, boxes: torch.Tensor, *, values: torch.Tensor) -> torch.Tensor:
    """Images (n, C, H, W) with `values`, which broadcast to them, inside boxes (n, 4)."""
    top, left, height, width = boxes[:, :, None].unbind(1)  # each (n, 1)
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    inside_rows = (rows >= top) & (rows < top + height)  # (n, H)
    inside_columns = (columns >= left) & (columns < left + width)  # (n, W)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]  # (n, 1, H, W)
    return torch.where(inside, values, images)
