"""RoIAlign (He et al., "Mask R-CNN", 2017): torchvision's, with a deterministic gradient on a GPU."""

import torch
import torchvision  # noqa: F401 - registers its operators

from cotnet import ops

if ops.TRITON:
    from cotnet.ops import roi_align_triton


def roi_align(features: torch.Tensor, rois: torch.Tensor, *, side: int, scale: float = 1.0) -> torch.Tensor:
    """Aligned, with as many samples as a bin has pixels: what detectron2 and mmdetection do.

    features (B, C, H, W) and rois (n, 5) of image, left, top, right, bottom in pixels / scale, all float32; returns
    (n, C, side, side). On a GPU where `torch.use_deterministic_algorithms` is on, the gradient is `roi_align_triton`'s,
    and wants rois sorted by image. (torchvision's own function would then visit every pixel of the map for every bin,
    with or without a gradient.)
    """
    if ops.TRITON and features.is_cuda and torch.are_deterministic_algorithms_enabled():
        return roi_align_triton.pool(features, rois, side, scale)
    return torch.ops.torchvision.roi_align(features, rois, scale, side, side, -1, aligned=True)
