"""Networks whose blocks see the whole map: attention-augmented, lambda and non-local ones.

Bello et al., "Attention Augmented Convolutional Networks" (2019); Bello, "LambdaNetworks: Modeling Long-Range
Interactions without Attention" (2021); Wang et al., "Non-local Neural Networks" (2018).
"""

from functools import partial
from typing import Annotated, Unpack

import torch
from torch import nn
from torch.nn import functional as F

from cotnet.models.botnet import BoTAttention, relative_logits
from cotnet.models.layers import conv_norm
from cotnet.models.local_attention import Heads, require_divisor
from cotnet.models.resnet import DEPTHS, OperatorStages, convolution, in_stages
from cotnet.models.resnet_base import ImageSize, ResNet, ResNetConfig, stage_grids, stem
from cotnet.models.spec import constructor
from cotnet.settings import Setting

__all__ = ["aa_resnet50", "lambda_resnet50", "non_local50"]


# torch.fx records these calls whole: they look at shapes.
torch.fx.wrap("halved")
torch.fx.wrap("relative_logits")
torch.fx.wrap("with_plain_gradient")


class AugmentedConvolution(nn.Module):
    """A 3x3 convolution and self-attention to all positions, side by side in the channels (section 3.2).

    (B, width, H, W) -> (B, width, H / stride, W / stride), any H and W. Attention gives a tenth of the channels, from
    keys of a fifth, at least 20 in a head (section 4.3). Relative positions as in BoTAttention; `side` is the nominal
    side of the strided map. Raises ValueError if `heads` does not divide `width`.
    """

    def __init__(self, width: int, stride: int = 1, *, side: int, heads: int = 8, dilation: int = 1) -> None:
        super().__init__()
        require_divisor("AugmentedConvolution", width, heads, "heads")
        self.heads = heads
        self.values = heads * max(round(0.1 * width / heads), 1)
        head_keys = max(round(0.2 * width / heads), 20)
        self.keys = heads * head_keys
        self.conv = nn.Conv2d(width, width - self.values, 3, stride, dilation, dilation, bias=False)
        self.qkv = nn.Conv2d(width, 2 * self.keys + self.values, 1, stride, bias=False)
        self.mix = nn.Conv2d(self.values, self.values, 1, bias=False)
        shape = (2 * side - 1, head_keys)
        self.vertical = nn.Parameter(torch.randn(shape) * head_keys**-0.5)
        self.horizontal = nn.Parameter(torch.randn(shape) * head_keys**-0.5)
        self.register_load_state_dict_pre_hook(BoTAttention.resize_tables)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.qkv(x)
        height, width = maps.shape[2:]
        query, key, value = maps.split([self.keys, self.keys, self.values], 1)
        query, key, value = (
            part.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)  # (B, heads, N, d)
            for part in (query, key, value)
        )
        query = query * query.shape[-1] ** -0.5
        bias = relative_logits(query, self.vertical, self.horizontal, height=height, width=width)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        attended = attended.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))
        return torch.cat([self.conv(x), self.mix(attended)], 1)


class LambdaLayer(nn.Module):
    """A linear function of the query for each position, made of its context: (B, width, H, W) -> the same, any H and W.

    The context is the whole map for contents and a `window` x `window` neighbourhood for positions (section 3.2,
    equations 1 and 2; the lambda convolution of section 3.3; intra-depth 1). Names are those of timm's layer, whose
    conv_lambda has a third dimension of size 1. Raises ValueError if `heads` does not divide `width`, or for an even
    window.
    """

    def __init__(self, width: int, *, heads: int = 4, keys: int = 16, window: int = 23) -> None:
        super().__init__()
        require_divisor("LambdaLayer", width, heads, "heads")
        if window % 2 == 0:
            raise ValueError(f"window {window} has no centre; give an odd one")
        self.sizes = (heads * keys, keys, width // heads)
        self.qkv = nn.Conv2d(width, sum(self.sizes), 1, bias=False)
        self.norm_q, self.norm_v = nn.BatchNorm2d(heads * keys), nn.BatchNorm2d(width // heads)
        self.conv_lambda = nn.Conv2d(1, keys, window, padding=window // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        query, key, value = self.qkv(x).split(self.sizes, 1)
        keys = key.shape[1]
        query = with_plain_gradient(self.norm_q(query)).unflatten(1, (-1, keys)).flatten(3)  # (B, heads, K, N)
        value = with_plain_gradient(self.norm_v(value))  # (B, V, H, W)
        content = torch.einsum("bkn,bvn->bkv", key.flatten(2).softmax(2), value.flatten(2))
        position = self.conv_lambda(value.flatten(0, 1).unsqueeze(1))  # each channel of the values is a sample
        position = position.unflatten(0, value.shape[:2]).flatten(3)  # (B, V, K, N)
        result = torch.einsum("bhkn,bkv->bhvn", query, content) + torch.einsum("bhkn,bvkn->bhvn", query, position)
        return result.flatten(1, 2).unflatten(2, (height, width))


def with_plain_gradient(x: torch.Tensor) -> torch.Tensor:
    """The output of a BatchNorm, whose gradient becomes contiguous for a batch of one.

    On a CPU torch's BatchNorm (2.14) computes a wrong gradient for one image if the gradient that it gets is the
    transposed result of a matrix product.
    """
    if x.requires_grad and len(x) == 1:
        x.register_hook(lambda gradient: None if gradient is None else gradient.contiguous())
    return x


class NonLocalBlock(nn.Module):
    """An embedded-Gaussian non-local block of half the channels: (B, C, H, W) -> the same, any H and W.

    Keys and values are pooled 2x2 (section 3.3 and equation 6). The last norm starts at zero, so a new block changes
    nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.w, self.bn = conv_norm(inner, channels)
        for projection in (self.theta, self.phi, self.g, self.w):
            nn.init.normal_(projection.get_parameter("weight"), std=0.01)
        nn.init.zeros_(self.bn.get_parameter("weight"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.theta(x), halved(self.phi(x)), halved(self.g(x))
        # ONNX wants a dimension of heads: (B, 1, N, C / 2)
        query, key, value = (part.flatten(2).transpose(1, 2).unsqueeze(1) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)
        return x + self.bn(self.w(attended.transpose(1, 2).unflatten(2, x.shape[2:])))


def halved(maps: torch.Tensor) -> torch.Tensor:
    """The largest of each 2 x 2 positions; a side of a single position stays."""
    return F.max_pool2d(maps, [min(2, side) for side in maps.shape[2:]])


def augmented(width: int, stride: int, *, side: int, heads: int = 8, dilation: int = 1) -> dict[str, nn.Module]:
    """The operator of AA-ResNet; `side` is the nominal side of the map after the stride."""
    layer = AugmentedConvolution(width, stride, side=side, heads=heads, dilation=dilation)
    return {"conv2": layer, "bn2": nn.BatchNorm2d(width), "act2": nn.ReLU(inplace=True)}


def lambdas(
    width: int,
    stride: int,
    *,
    window: int = 23,
    heads: int = 4,
    keys: int = 16,
    dilation: int = 1,  # noqa: ARG001
) -> dict[str, nn.Module]:
    """The operator of LambdaResNet; a strided block pools 3x3 after it (section 4). The window keeps its size in
    positions, as in timm.
    """
    pool = {"avd": nn.AvgPool2d(3, stride, padding=1)} if stride > 1 else {}
    layer = LambdaLayer(width, heads=heads, keys=keys, window=window)
    return {"conv2": layer, **pool, "bn2": nn.BatchNorm2d(width), "act2": nn.ReLU(inplace=True)}


@constructor
def aa_resnet50(
    *,
    image_size: ImageSize = 224,
    stages: OperatorStages = (2, 3, 4),
    heads: Heads = 8,
    **common: Unpack[ResNetConfig],
) -> ResNet:
    """AA-ResNet-50: 25.8 M parameters."""
    strides = [grid.reduction for grid in stage_grids(4, (1, 2, 2, 2), common.get("output_stride"))]
    blocks = [
        [partial(augmented, side=max(image_size // stride, 1), heads=heads)] * depth
        if level in stages
        else [convolution] * depth
        for level, (depth, stride) in enumerate(zip(DEPTHS, strides, strict=True), start=1)
    ]
    return ResNet(stem, blocks, **common)


@constructor
def lambda_resnet50(
    *,
    stages: OperatorStages = (1, 2, 3, 4),
    heads: Heads = 4,
    keys: Annotated[int, Setting("channels of a key", least=1)] = 16,
    window: Annotated[int, Setting("height and width of the neighbourhood of positions; odd", least=1)] = 23,
    **common: Unpack[ResNetConfig],
) -> ResNet:
    """LambdaResNet-50: 15.0 M parameters."""
    operator = partial(lambdas, heads=heads, keys=keys, window=window)
    return ResNet(stem, in_stages(operator, stages, DEPTHS), **common)


@constructor
def non_local50(*, stages: OperatorStages = (3,), **common: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-50 with a non-local block before the last block of each of `stages`: c4, or c4 and c5 as [3, 4]."""
    return ResNet(stem, in_stages(convolution, (), DEPTHS), extra=dict.fromkeys(stages, NonLocalBlock), **common)
