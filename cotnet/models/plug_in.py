"""CoT in other networks: replace 3x3 convolutions by the block; and the simplified block in circulation."""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import resnet as torchvision_resnet

from cotnet.models.contextual import CoTLayer
from cotnet.models.layers import conv_norm
from cotnet.models.resnet_base import Bottleneck, initialize

BLOCKS = (Bottleneck, torchvision_resnet.Bottleneck, torchvision_resnet.BasicBlock)


def plug_in(model: nn.Module, layer: Callable[[int], nn.Module] = CoTLayer) -> list[str]:
    """Replace, in place, the 3x3 convolutions in the blocks of a ResNet of torchvision or of this project.

    `layer(channels)` maps (B, channels, H, W) to the same shape. A strided convolution becomes a pool of that stride
    and the layer; one that changes the width becomes a 1x1 convolution and the layer. Returns the replaced names.
    Raises ValueError, and changes nothing, if the model has no such block, a block has no such convolution, or the
    layer raises ValueError for a width.
    """
    new: dict[str, nn.Module] = {}
    blocks = [(name, block) for name, block in model.named_modules() if isinstance(block, BLOCKS)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} is not a ResNet of torchvision or cotnet.models; use CoTLayer itself")
    for name, block in blocks:
        convolutions = {key: child for key, child in block.named_children() if isinstance(child, nn.Conv2d)}
        convolutions = {key: child for key, child in convolutions.items() if child.kernel_size == (3, 3)}
        if not convolutions:
            raise ValueError(f"{name} has no 3x3 convolution to replace")
        for key, convolution in convolutions.items():
            new[f"{name}.{key}"] = _instead_of(convolution, f"{name}.{key}", layer)
    for name, module in new.items():
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, module)
    return list(new)


class CoTAttention(nn.Module):
    """The simplified block that circulates under this name: (B, dim, H, W) -> the same shape.

    It differs from the paper: two 1x1 convolutions over [static context, x] give logits, which are averaged over the
    kernel_size**2 kernel positions; their softmax over the map multiplies the values. No neighbourhood is summed.
    Parameter names are those in circulation, so weights trained with it load. `dim` must be a multiple of 4.
    """

    def __init__(self, dim: int = 512, kernel_size: int = 3, *, factor: int = 4) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"CoTAttention cannot divide {dim} channels into 4 groups")
        self.kernel_positions = kernel_size**2
        self.key_embed = nn.Sequential(*conv_norm(dim, dim, kernel_size, groups=4), nn.ReLU())
        self.value_embed = nn.Sequential(*conv_norm(dim, dim))
        hidden, logits = 2 * dim // factor, self.kernel_positions * dim
        self.attention_embed = nn.Sequential(*conv_norm(2 * dim, hidden), nn.ReLU(), nn.Conv2d(hidden, logits, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        static_context = self.key_embed(x)
        logits = self.attention_embed(torch.cat([static_context, x], 1)).unflatten(1, (-1, self.kernel_positions))
        attention = logits.mean(2).flatten(2).softmax(2).view_as(x)
        return static_context + attention * self.value_embed(x)


def _instead_of(convolution: nn.Conv2d, name: str, layer: Callable[[int], nn.Module]) -> nn.Module:
    if convolution.dilation != (1, 1):
        raise ValueError(f"{name} is dilated; build the layers of this network with CoTLayer(dilation=...) instead")
    steps: list[nn.Module] = []
    if convolution.stride != (1, 1):
        steps.append(nn.AvgPool2d(3, convolution.stride[0], padding=1))
    if convolution.in_channels != convolution.out_channels:
        steps.append(nn.Conv2d(convolution.in_channels, convolution.out_channels, 1, bias=False))
    try:
        steps.append(layer(convolution.out_channels))
    except ValueError as error:
        raise ValueError(f"{name} cannot be replaced: {error}") from None
    module = nn.Sequential(*steps) if len(steps) > 1 else steps[0]
    initialize(module, zero_last_norm=False)
    return module.to(convolution.weight.device, convolution.weight.dtype).train(convolution.training)
