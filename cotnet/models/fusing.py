"""Fold each batch norm into the convolution before it, for inference."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse(model: nn.Module) -> nn.Module:
    """A copy of one of this project's backbones for inference, with the same logits up to rounding.

    Norms that follow no convolution stay: after CoT's local aggregation, after BoTNet's attention, and in PVT. The
    state-dict keys change. Raises ValueError for models of other libraries, whose order of layers is unknown.
    """
    if not hasattr(model, "stage_channels"):
        raise ValueError(f"{type(model).__name__} is not one of this project's backbones; it cannot be fused")
    fused = copy.deepcopy(model).eval()
    for module in list(fused.modules()):
        in_order = getattr(module, "in_order", ())
        if isinstance(module, nn.Sequential):
            in_order = [name for name, _ in module.named_children()]
        for first, second in pairwise(in_order):
            parent, name, child = module, first, getattr(module, first)
            if isinstance(child, nn.Sequential) and len(child):  # a deep stem, with its last norm behind it
                parent, name = child, str(len(child) - 1)
            convolution, norm = getattr(parent, name), getattr(module, second)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return fused
