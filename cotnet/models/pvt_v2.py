"""PVTv2: PVT with overlapping patches, a convolution in each feed-forward layer and no position tables.

Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer" (2022), sections 3.2 to 3.4 and table 1.
State-dict keys are those of the authors' release.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Unpack

import torch
from torch import nn
from torch.nn import functional as F

from cotnet.models.checkpointing import Stage
from cotnet.models.layers import DropPath, growing
from cotnet.models.pvt import PatchEmbedding, SpatialReductionAttention, initialize, pyramid_parts, to_maps, to_tokens
from cotnet.models.resnet_base import CommonConfig
from cotnet.models.spec import constructor
from cotnet.models.timm_protocol import Backbone, classifier
from cotnet.settings import Setting

__all__ = ["pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b2_li", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5"]
NARROW, WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
HEADS, REDUCTIONS, PATCHES = (1, 2, 5, 8), (8, 4, 2, 1), (4, 2, 2, 2)
EXPANSIONS = (8, 8, 4, 4)

Linear = Annotated[bool, Setting("keys and values are of the map pooled to 7 x 7, at any image size")]


class AveragePool(nn.Module):
    """Tokens (B, H * W, C) of a map of `size` -> (B, side * side, C): means over a grid of even windows.

    The windows are those of `nn.AdaptiveAvgPool2d`: they overlap where `side` does not divide H or W. As two matrix
    products it exports for any size, and its gradient on a GPU is the same bits every time, which torch's is not.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        rows, columns = (self.shares(length, tokens) for length in size)
        narrow = columns @ tokens.unflatten(1, tuple(size))  # (B, H, side, C)
        return (rows @ narrow.flatten(2)).unflatten(2, (self.side, -1)).flatten(1, 2)

    def shares(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """The share of each of `length` places in each window: (side, length), rows add up to 1."""
        window = torch.arange(self.side, device=like.device)[:, None]
        place = torch.arange(length, device=like.device)
        first, end = window * length // self.side, ((window + 1) * length + self.side - 1) // self.side
        return ((place >= first) & (place < end)) / (end - first).to(like.dtype)


class LinearReductionAttention(SpatialReductionAttention):
    """Attention to the map's 7 x 7 average pool, so linear in the number of tokens (section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, 1)
        self.pool = AveragePool(7)
        self.sr = nn.Conv2d(width, width, 1)
        self.norm = nn.LayerNorm(width)

    def reduce(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """What keys and values are made of: (B, 49, width)."""
        pooled = to_maps(self.pool(tokens, size), self.key_size(size))
        return F.gelu(self.norm(to_tokens(self.sr(pooled))))

    def key_size(self, size: Sequence[int]) -> tuple[int, int]:  # noqa: ARG002
        """Height and width of the map of keys."""
        return self.pool.side, self.pool.side


class DepthwiseConvolution(nn.Module):
    """3x3, of one channel each: tokens (B, H * W, C) of a map of `size` -> the same shape.

    Zeros around the map tell positions near the border apart, and positions further in by the next layers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return to_tokens(self.dwconv(to_maps(tokens, size)))


class ConvolutionalFeedForward(nn.Module):
    """A linear layer, a depth-wise convolution, GELU, a linear layer (section 3.4): tokens -> the same shape.

    `relu`: a ReLU before the convolution, which the release has beside linear attention.
    """

    def __init__(self, width: int, hidden: int, *, relu: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.dwconv = DepthwiseConvolution(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return self.fc2(F.gelu(self.dwconv(self.relu(self.fc1(tokens)), size)))


class PVTv2Block(nn.Module):
    """Pre-norm encoder block: tokens (B, H * W, width) of a map of `size` -> the same shape."""

    def __init__(
        self, width: int, heads: int, *, reduction: int, expansion: int, linear: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = (
            LinearReductionAttention(width, heads) if linear else SpatialReductionAttention(width, heads, reduction)
        )
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = ConvolutionalFeedForward(width, expansion * width, relu=linear)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        tokens = self.drop_path(tokens, self.attn(self.norm1(tokens), size))
        return self.drop_path(tokens, self.mlp(self.norm2(tokens), size))


class StageNorm(nn.LayerNorm):
    """Tokens (B, H * W, C) of a map of `size` -> the normalised map (B, C, H, W)."""

    def forward(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:  # type: ignore[override]
        return to_maps(super().forward(tokens), size)


# torch.fx records these calls whole: they look at shapes.
torch.fx.wrap("to_maps")


class PVTv2(Backbone):
    """Images (B, C, H, W) of any size -> logits (B, num_classes).

    Drop path grows linearly with depth up to `drop_path`; `dropout` applies to the mean token before the classifier.
    """

    output_formats = ("NCHW", "NLC")
    stage_strides = (4, 8, 16, 32)

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        *,
        expansions: Sequence[int] = EXPANSIONS,
        linear: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stage_channels = tuple(widths)
        rates = growing(drop_path, sum(depths))
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else in_channels
            shape = {"reduction": REDUCTIONS[i], "expansion": expansions[i]}
            blocks = [
                PVTv2Block(width, HEADS[i], **shape, linear=linear, drop_path=next(rates)) for _ in range(depths[i])
            ]
            self.add_module(f"patch_embed{i + 1}", PatchEmbedding(before, width, PATCHES[i], overlap=True))
            self.add_module(f"block{i + 1}", Stage(*blocks))
            self.add_module(f"norm{i + 1}", StageNorm(width, eps=1e-6))
        self.dropout = nn.Dropout(dropout)
        self.head = classifier(widths[-1], num_classes)
        initialize(self)
        initialize_convolutions(self)

    def forward_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The normalised maps of the four stages, (B, stage_channels[i], H / stage_strides[i], W / stage_strides[i]).

        Sizes are rounded up.
        """
        x, maps = images, []
        for number in range(1, len(self.stage_channels) + 1):
            x = self.get_submodule(f"patch_embed{number}")(x)
            size = x.shape[2:]
            tokens = self.get_submodule(f"block{number}")(to_tokens(x), size)
            x = self.get_submodule(f"norm{number}")(tokens, size)
            maps.append(x)
        return maps

    def stage_parts(self) -> list[tuple[str, ...]]:
        return pyramid_parts(self.stage_channels, ("patch_embed", "block", "norm"))

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002
        features = self.dropout(features.mean((2, 3)))
        return features if pre_logits else self.head(features)

    def no_weight_decay(self) -> set[str]:
        """Nothing beside vectors: the release names the tables and the token that PVT has."""
        return set()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        initialize(self.head)


def initialize_convolutions(module: nn.Module) -> None:
    """Convolutions: normal of variance 2 / fan-out, where a group's outputs count; biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@constructor
def pvt_v2_b0(*, linear: Linear = False, **common: Unpack[CommonConfig]) -> PVTv2:
    """PVTv2-B0: 3.7 M parameters, 0.6 G multiply-adds at 224 px."""
    return PVTv2(NARROW, (2, 2, 2, 2), linear=linear, **common)


@constructor
def pvt_v2_b1(*, linear: Linear = False, **common: Unpack[CommonConfig]) -> PVTv2:
    """PVTv2-B1: 14.0 M parameters, 2.1 G multiply-adds at 224 px."""
    return PVTv2(WIDE, (2, 2, 2, 2), linear=linear, **common)


@constructor
def pvt_v2_b2(*, linear: Linear = False, **common: Unpack[CommonConfig]) -> PVTv2:
    """PVTv2-B2: 25.4 M parameters, 4.0 G multiply-adds at 224 px."""
    return PVTv2(WIDE, (3, 4, 6, 3), linear=linear, **common)


@constructor
def pvt_v2_b2_li(**common: Unpack[CommonConfig]) -> PVTv2:
    """PVTv2-B2-Linear: 22.6 M parameters, 3.9 G multiply-adds at 224 px."""
    return PVTv2(WIDE, (3, 4, 6, 3), linear=True, **common)


@constructor
def pvt_v2_b3(*, linear: Linear = False, **common: Unpack[CommonConfig]) -> PVTv2:
    """PVTv2-B3: 45.2 M parameters, 6.9 G multiply-adds at 224 px."""
    return PVTv2(WIDE, (3, 4, 18, 3), linear=linear, **common)


@constructor
def pvt_v2_b4(*, linear: Linear = False, **common: Unpack[CommonConfig]) -> PVTv2:
    """PVTv2-B4: 62.6 M parameters, 10.1 G multiply-adds at 224 px."""
    return PVTv2(WIDE, (3, 8, 27, 3), linear=linear, **common)


@constructor
def pvt_v2_b5(*, linear: Linear = False, **common: Unpack[CommonConfig]) -> PVTv2:
    """PVTv2-B5: 82.0 M parameters, 11.8 G multiply-adds at 224 px."""
    return PVTv2(WIDE, (3, 6, 40, 3), expansions=(4, 4, 4, 4), linear=linear, **common)
