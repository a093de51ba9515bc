"""Fold each batch norm into the convolution before it, for inference."""

import copy
from collections.abc import Iterator
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cotnet.models.layers import SplitAttention
from cotnet.models.resnet_base import Bottleneck, ResNet


def fuse(model: nn.Module) -> nn.Module:
    """A copy of one of this project's backbones for inference, with the same logits up to rounding.

    Norms that follow no convolution stay: after CoT's local aggregation, after BoTNet's attention, and in PVT. The
    state-dict keys change. Raises ValueError for models of other libraries, whose order of layers is unknown.
    """
    if not hasattr(model, "stage_channels"):
        raise ValueError(f"{type(model).__name__} is not one of this project's backbones; it cannot be fused")
    fused = copy.deepcopy(model).eval()
    for module in list(fused.modules()):
        for first, second in _pairs(module):
            holder, name = _last(module, first)
            convolution, norm = getattr(holder, name), getattr(module, second)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(holder, name, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return fused


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of children that run directly one after the other."""
    if isinstance(module, nn.Sequential):
        yield from pairwise(name for name, _ in module.named_children())
    elif isinstance(module, ResNet):
        yield from pairwise(module.stem)
    elif isinstance(module, Bottleneck):
        yield from pairwise(module.branch)
    elif isinstance(module, SplitAttention):
        yield from (("conv", "bn0"), ("fc1", "bn1"))


def _last(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The parent and the name of the child's last layer: a deep stem is a Sequential followed by its norm."""
    child = getattr(module, name)
    return (child, str(len(child) - 1)) if isinstance(child, nn.Sequential) and len(child) else (module, name)
