"""PVT: a pyramid of transformer stages with spatial-reduction attention.

Wang et al., "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions" (2021),
section 3 and table 1. State-dict keys are those of the authors' release.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import nn
from torch.nn import functional as F

from cotnet.models.checkpointing import Stage
from cotnet.models.layers import DropPath, growing
from cotnet.models.resnet_base import CommonConfig, ImageSize
from cotnet.models.spec import constructor
from cotnet.models.timm_protocol import Backbone, classifier

__all__ = ["pvt_large", "pvt_medium", "pvt_small", "pvt_tiny"]
WIDTHS, HEADS, REDUCTIONS, EXPANSIONS = (64, 128, 320, 512), (1, 2, 5, 8), (8, 4, 2, 1), (8, 8, 4, 4)
PATCHES = (4, 2, 2, 2)


# torch.fx records these calls whole: they look at shapes.
torch.fx.wrap("at_least")
torch.fx.wrap("resize_table")
torch.fx.wrap("to_maps")


class PatchEmbedding(nn.Module):
    """Linear embedding of patches: maps (B, C, H, W) -> (B, width, H // patch, W // patch), at least 1 x 1.

    `overlap`: of windows of side 2 * patch - 1 at every patch, zeros around the map; sizes are rounded up.
    """

    def __init__(self, in_channels: int, width: int, patch: int, *, overlap: bool = False) -> None:
        super().__init__()
        self.patch = patch
        beyond = patch - 1 if overlap else 0
        self.proj = nn.Conv2d(in_channels, width, patch + beyond, patch, beyond)
        self.norm = nn.LayerNorm(width)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        embedded = self.proj(at_least(maps, self.patch))
        return to_maps(self.norm(to_tokens(embedded)), embedded.shape[2:])


class SpatialReductionAttention(nn.Module):
    """Multi-head attention whose keys and values come from a map reduced R times per side (equations 1 to 3).

    Tokens (B, H * W [+ 1], width) -> the same shape. With a class token, which is in no map, R must be 1.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        query, key, value = self.project(tokens, size)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.proj(attended)

    def project(self, tokens: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, heads, N, d), keys and values (B, heads, N / R^2, d)."""
        query = self.q(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(self.reduce(tokens, size)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def reduce(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """What keys and values are made of: (B, N / R^2, width)."""
        if self.reduction == 1:
            return tokens
        return self.norm(to_tokens(self.sr(at_least(to_maps(tokens, size), self.reduction))))

    def attention_weights(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The softmax that `forward` never forms: (B, heads, N, N / R^2), a row for each query."""
        query, key, _ = self.project(tokens, size)
        return (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(3)

    def key_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the map of keys for a map of `size`."""
        height, width = (max(side, self.reduction) // self.reduction for side in size)
        return height, width


class EncoderBlock(nn.Module):
    """Pre-norm transformer encoder block (figure 3): tokens (B, N, width) of a map of `size` -> the same shape."""

    def __init__(self, width: int, heads: int, reduction: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SpatialReductionAttention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = expansion * width
        layers = {"fc1": nn.Linear(width, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        tokens = self.drop_path(tokens, self.attn(self.norm1(tokens), size))
        return self.drop_path(tokens, self.mlp(self.norm2(tokens)))


class PVT(Backbone):
    """Images (B, C, H, W) of any size -> logits (B, num_classes).

    `image_size` is the nominal size of the position tables. They are resized bilinearly for other inputs, and tables of
    another size are resized when a state dict is loaded. Drop path grows linearly with depth up to `drop_path`;
    `dropout` applies to the class token before the classifier.
    """

    output_formats = ("NCHW", "NLC")
    stage_channels = WIDTHS
    stage_strides = (4, 8, 16, 32)

    def __init__(
        self,
        depths: Sequence[int],
        *,
        image_size: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sides = tuple(max(image_size // stride, 1) for stride in self.stage_strides)
        rates = growing(drop_path, sum(depths))
        for i, width in enumerate(WIDTHS):
            tokens, before = self.sides[i] ** 2 + (i == len(WIDTHS) - 1), WIDTHS[i - 1] if i else in_channels
            self.register_parameter(f"pos_embed{i + 1}", nn.Parameter(torch.zeros(1, tokens, width)))
            self.add_module(f"patch_embed{i + 1}", PatchEmbedding(before, width, PATCHES[i]))
            blocks = [
                EncoderBlock(width, HEADS[i], REDUCTIONS[i], EXPANSIONS[i], next(rates)) for _ in range(depths[i])
            ]
            self.add_module(f"block{i + 1}", Stage(*blocks))
        self.cls_token: nn.Parameter | None = nn.Parameter(torch.zeros(1, 1, WIDTHS[-1]))
        self.norm = nn.LayerNorm(WIDTHS[-1], eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.side = image_size
        self.head = classifier(WIDTHS[-1], num_classes)
        self.register_load_state_dict_pre_hook(PVT.resize_tables)
        initialize(self)

    def forward_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps of the four stages, (B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])."""
        return self._encode(images)[0]

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """The normalised tokens of the last stage, (B, 1 + N, width), the class token first."""
        return self.norm(self._encode(images)[1])

    def forward_features_keeping(self, images: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        maps, tokens = self._encode(images)
        kept += maps
        return self.norm(tokens)

    def stage_parts(self) -> list[tuple[str, ...]]:
        return pyramid_parts(self.stage_channels, ("patch_embed", "pos_embed", "block"))

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, *args: Any, **settings: Any
    ) -> list[int]:
        """As of all backbones; `forward` does not work after it."""
        kept = super().prune_intermediate_layers(indices, *args, **settings)
        self.add_module("norm", nn.Identity())
        if len(self.stage_channels) < len(self.sides):
            self.cls_token, self.sides = None, self.sides[: len(self.stage_channels)]
        return kept

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002
        token = self.dropout(features[:, 0])
        return token if pre_logits else self.head(token)

    def no_weight_decay(self) -> set[str]:
        """The class token; the authors' release decays the position tables, too."""
        return {"cls_token"} if self.cls_token is not None else set()

    def drop_class_token(self) -> None:
        """Leave only what `forward_stages` needs: no class token, its row of a table, final norm or classifier.

        The authors' detectors and segmentation networks do without them, too. `forward` does not work after it.
        """
        self.cls_token = None
        for name in ("norm", "head"):
            self.add_module(name, nn.Identity())
        name = f"pos_embed{len(self.sides)}"
        self.register_parameter(name, nn.Parameter(self.get_parameter(name).detach()[:, 1:].clone()))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        initialize(self.head)

    def resize_tables(self, state_dict: dict[str, torch.Tensor], prefix: str, *_: object) -> None:
        """Resize position tables of another nominal image size to this model's."""
        for number, side in enumerate(self.sides, start=1):
            key, extra = f"pos_embed{number}", int(number == len(self.sides) and self.cls_token is not None)
            own, table = self.get_parameter(key), state_dict.get(prefix + key)
            if table is None or table.shape == own.shape or table.shape[2:] != own.shape[2:]:
                continue
            before = math.isqrt(table.shape[1] - extra)
            if before**2 == table.shape[1] - extra:
                places = resize_table(table[:, extra:], before, (side, side))
                state_dict[prefix + key] = torch.cat([table[:, :extra], places], 1)

    def _encode(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The four feature maps, and the last stage's tokens (B, 1 + N, width), the class token first (if any)."""
        x, maps = images, []
        for i, side in enumerate(self.sides):
            x = getattr(self, f"patch_embed{i + 1}")(x)
            size, token = x.shape[2:], self.cls_token if i == len(self.sides) - 1 else None
            table = getattr(self, f"pos_embed{i + 1}")
            positions = resize_table(table if token is None else table[:, 1:], side, size)
            tokens = to_tokens(x)
            if token is not None:
                tokens = torch.cat([token.expand(x.shape[0], -1, -1), tokens], 1)
                positions = torch.cat([table[:, :1], positions], 1)
            tokens = tokens + positions
            tokens = getattr(self, f"block{i + 1}")(tokens, size)
            x = to_maps(tokens if token is None else tokens[:, 1:], size)
            maps.append(x)
        return maps, tokens


def resize_table(table: torch.Tensor, side: int, size: Sequence[int]) -> torch.Tensor:
    """Resize a table of positions bilinearly: (1, side * side, width) -> (1, H * W, width)."""
    if not torch.compiler.is_exporting() and tuple(size) == (side, side):  # an exported graph serves every size
        return table
    return to_tokens(F.interpolate(to_maps(table, (side, side)), size=tuple(size), mode="bilinear"))


def pyramid_parts(stages: Sequence[int], parts: Sequence[str]) -> list[tuple[str, ...]]:
    """The names of the stem's parts, which are the first stage's before its blocks, then of each stage's."""
    first, *others = (tuple(f"{part}{number}" for part in parts) for number in range(1, len(stages) + 1))
    before = [name for name in first if name.startswith(("patch_embed", "pos_embed"))]
    return [tuple(before), first[len(before) :], *others]


def initialize(module: nn.Module) -> None:
    """Tables, tokens and linear weights: truncated normal of 0.02; biases zero; convolutions keep torch's default."""
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith(("pos_embed", "cls_token")):
            nn.init.trunc_normal_(parameter, std=0.02)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


@constructor
def pvt_tiny(*, image_size: ImageSize = 224, **common: Unpack[CommonConfig]) -> PVT:
    """PVT-Tiny: 13.2 M parameters, 1.9 G multiply-adds at 224 px."""
    return PVT((2, 2, 2, 2), image_size=image_size, **common)


@constructor
def pvt_small(*, image_size: ImageSize = 224, **common: Unpack[CommonConfig]) -> PVT:
    """PVT-Small: 24.5 M parameters, 3.8 G multiply-adds at 224 px."""
    return PVT((3, 4, 6, 3), image_size=image_size, **common)


@constructor
def pvt_medium(*, image_size: ImageSize = 224, **common: Unpack[CommonConfig]) -> PVT:
    """PVT-Medium: 44.2 M parameters, 6.7 G multiply-adds at 224 px."""
    return PVT((3, 4, 18, 3), image_size=image_size, **common)


@constructor
def pvt_large(*, image_size: ImageSize = 224, **common: Unpack[CommonConfig]) -> PVT:
    """PVT-Large: 61.4 M parameters, 9.8 G multiply-adds at 224 px."""
    return PVT((3, 8, 27, 3), image_size=image_size, **common)


def to_tokens(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, H * W, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def at_least(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Pad smaller maps with zeros on the right and below to one whole patch."""
    height, width = maps.shape[2:]
    if height >= side and width >= side:
        return maps
    return F.pad(maps, (0, max(0, side - width), 0, max(0, side - height)))
