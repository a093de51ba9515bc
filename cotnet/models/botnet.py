"""BoTNet: a ResNet with self-attention instead of 3x3 convolutions in its last stage.

Srinivas et al., "Bottleneck Transformers for Visual Recognition" (2021), section 3 and figure 4. The authors released
no PyTorch code or weights; state-dict keys are torchvision's, except in the attention layer.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Unpack

import torch
from torch import nn
from torch.nn import functional as F

from cotnet.models.layers import Activation, HalvingPool, SqueezeExcite
from cotnet.models.resnet import convolution
from cotnet.models.resnet_base import ImageSize, Operator, ResNet, ResNetConfig, stage_grids, stem
from cotnet.models.spec import constructor
from cotnet.settings import Setting

__all__ = ["botnet50", "botnet101", "botnet152", "botnet200"]
__all__ += ["botnet_s1_50", "botnet_s1_59", "botnet_s1_77", "botnet_s1_110", "botnet_s1_128"]
ALL = tuple(range(36))  # more blocks than any stage has


# torch.fx records these calls whole: they look at shapes.
torch.fx.wrap("relative_logits")


class BoTAttention(nn.Module):
    """Multi-head self-attention over a map with relative positions: (B, width, H, W) -> the same, any H and W.

    The logits are q k^T + q r^T (figure 4). q is divided by the root of a head's width; r is the sum of an embedding
    of the vertical offset and one of the horizontal offset, shared by the heads. `side` is the nominal side of the
    map: the tables hold its 2 * side - 1 offsets and are resampled linearly for other maps. With `positions` False
    the logits are q k^T. Raises ValueError if `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, side: int, *, positions: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} channels cannot be divided among {heads} heads; give a divisor")
        self.heads, self.positions = heads, positions
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        for projection in (self.query, self.key, self.value):
            nn.init.normal_(projection.weight, std=0.01)
        if positions:
            shape = (2 * side - 1, width // heads)
            self.vertical = nn.Parameter(torch.randn(shape) * shape[1] ** -0.5)
            self.horizontal = nn.Parameter(torch.randn(shape) * shape[1] ** -0.5)
            self.register_load_state_dict_pre_hook(BoTAttention.resize_tables)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        query, key, value, bias = self.project(x)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        # contiguous: the ONNX exporter views the channels as one dimension
        return attended.transpose(2, 3).contiguous().flatten(1, 2).unflatten(2, (height, width))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Scaled queries, keys and values (B, heads, N, d) of a map, N = H * W, and the position logits, if any."""
        height, width = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        query, key, value = (
            projection(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        query = query * query.shape[-1] ** -0.5
        return query, key, value, self.position_logits(query, height, width) if self.positions else None

    def attention_weights(self, x: torch.Tensor) -> torch.Tensor:
        """The softmax that `forward` never forms: (B, width, H, W) -> (B, heads, N, N), a row for each query."""
        query, key, _, bias = self.project(x)
        logits = query @ key.transpose(2, 3)
        return (logits if bias is None else logits + bias).softmax(3)

    def position_logits(self, query: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """q r^T for all pairs of positions: (B, heads, N, d) -> (B, heads, N, N)."""
        return relative_logits(query, self.vertical, self.horizontal, height=height, width=width)

    def resize_tables(self, state_dict: dict[str, torch.Tensor], prefix: str, *_: object) -> None:
        """Resample tables of another nominal side to this layer's."""
        for name, own in self.named_parameters(recurse=False):
            table = state_dict.get(prefix + name)
            if table is not None and table.shape != own.shape and table.shape[1:] == own.shape[1:]:
                state_dict[prefix + name] = resample(table, own.shape[0])


def relative_logits(
    query: torch.Tensor, vertical: torch.Tensor, horizontal: torch.Tensor, *, height: int, width: int
) -> torch.Tensor:
    """q r^T for all pairs of positions, r the sum of two tables' embeddings: (B, heads, N, d) -> (B, heads, N, N)."""
    query = query.unflatten(2, (height, width))
    rows = torch.einsum("bhyxd,yzd->bhyxz", query, by_offset(vertical, height))
    columns = torch.einsum("bhyxd,xwd->bhyxw", query, by_offset(horizontal, width))
    return (rows.unsqueeze(5) + columns.unsqueeze(4)).flatten(4, 5).flatten(2, 3)


def resample(table: torch.Tensor, offsets: int) -> torch.Tensor:
    """Resample a table of offsets linearly: (2 * side - 1, d) -> (offsets, d). Offset 0 stays in the middle."""
    if not torch.compiler.is_exporting() and len(table) == offsets:  # an exported graph serves every size
        return table
    row = table.t()[None, :, None]  # of one pixel's height: mode "linear" has no deterministic gradient on a GPU
    return F.interpolate(row, size=(1, offsets), mode="bilinear")[0, :, 0].t()


def by_offset(table: torch.Tensor, side: int) -> torch.Tensor:
    """Embeddings of the offsets between all pairs of `side` positions: (offsets, d) -> (side, side, d)."""
    positions = torch.arange(side, device=table.device)
    return resample(table, 2 * side - 1)[positions.unsqueeze(0) - positions.unsqueeze(1) + side - 1]


def attention(
    width: int,
    stride: int,
    *,
    act: Activation,
    dilation: int = 1,  # noqa: ARG001 - it attends to the whole map
    **settings: Any,
) -> dict[str, nn.Module]:
    """The operator of BoTNet, with BoTAttention's settings; a strided block pools 2x2 after it (table 1)."""
    pool = {"avd": HalvingPool()} if stride > 1 else {}
    layer = BoTAttention(width, **settings)
    return {"conv2": layer, **pool, "bn2": nn.BatchNorm2d(width), "act2": act(inplace=True)}


@constructor
def botnet50(
    *,
    image_size: ImageSize = 224,
    c4: Annotated[tuple[int, ...], Setting("blocks of the third stage, from 0, that attend")] = (),
    c5: Annotated[tuple[int, ...], Setting("blocks of the last stage, from 0, that attend")] = ALL,
    stride: Annotated[int, Setting("stride of the last stage", least=1)] = 2,
    heads: Annotated[int, Setting("attention heads; a divisor of the stages' width", least=1)] = 4,
    positions: Annotated[bool, Setting("attention to relative positions, beside that to content")] = True,
    added: Annotated[int, Setting("attending blocks that follow the last stage's three", least=0)] = 0,
    **common: Unpack[ResNetConfig],
) -> ResNet:
    """BoT-50: 20.9 M parameters, 4.0 G multiply-adds at 224 px (table 1)."""
    c5, depths = (*c5, *range(3, 3 + added)), (3, 4, 6, 3 + added)
    return _botnet(depths, image_size, c4=c4, c5=c5, stride=stride, heads=heads, positions=positions, **common)


@constructor
def botnet101(*, image_size: ImageSize = 224, **common: Unpack[ResNetConfig]) -> ResNet:
    """BoT-101."""
    return _botnet((3, 4, 23, 3), image_size, **common)


@constructor
def botnet152(*, image_size: ImageSize = 224, **common: Unpack[ResNetConfig]) -> ResNet:
    """BoT-152."""
    return _botnet((3, 8, 36, 3), image_size, **common)


@constructor
def botnet200(*, image_size: ImageSize = 224, **common: Unpack[ResNetConfig]) -> ResNet:
    """BoT-200."""
    return _botnet((3, 24, 36, 3), image_size, **common)


@constructor
def botnet_s1_50(*, image_size: ImageSize = 224, **common: Unpack[ResNetConfig]) -> ResNet:
    """BoT-S1-50: stride 1 in c5, no gates, ReLU; 20.9 M parameters."""
    return _botnet((3, 4, 6, 3), image_size, stride=1, **common)


@constructor
def botnet_s1_59(*, image_size: ImageSize = 224, **common: Unpack[ResNetConfig]) -> ResNet:
    """BoT-S1-59: stride 1 in c5, gates and SiLU everywhere; 33.7 M parameters at 224 px."""
    return _botnet((3, 4, 6, 6), image_size, stride=1, gate=SqueezeExcite, act=nn.SiLU, **common)


@constructor
def botnet_s1_77(*, image_size: ImageSize = 320, **common: Unpack[ResNetConfig]) -> ResNet:
    """BoT-S1-77: stride 1 in c5, gates and SiLU everywhere; 54.2 M parameters at 320 px."""
    return _botnet((3, 4, 6, 12), image_size, stride=1, gate=SqueezeExcite, act=nn.SiLU, **common)


@constructor
def botnet_s1_110(*, image_size: ImageSize = 224, **common: Unpack[ResNetConfig]) -> ResNet:
    """BoT-S1-110: stride 1 in c5, gates and SiLU everywhere; 54.9 M parameters at 224 px."""
    return _botnet((3, 4, 23, 6), image_size, stride=1, gate=SqueezeExcite, act=nn.SiLU, **common)


@constructor
def botnet_s1_128(*, image_size: ImageSize = 256, **common: Unpack[ResNetConfig]) -> ResNet:
    """BoT-S1-128: stride 1 in c5, gates and SiLU everywhere; 75.4 M parameters at 256 px."""
    return _botnet((3, 4, 23, 12), image_size, stride=1, gate=SqueezeExcite, act=nn.SiLU, **common)


def _botnet(
    depths: Sequence[int],
    image_size: int,
    *,
    c4: Sequence[int] = (),
    c5: Sequence[int] = ALL,
    stride: int = 2,
    heads: int = 4,
    positions: bool = True,
    act: Activation = nn.ReLU,
    output_stride: int = 32,
    **settings: Any,
) -> ResNet:
    """`c4` and `c5` are the blocks of the last two stages that attend; `stride` is that of c5."""
    blocks: list[list[Operator]] = [[partial(convolution, act=act)] * depth for depth in depths]
    strides = (1, 2, 2, stride)
    grids = list(stage_grids(4, strides, output_stride))
    for stage, attending in ((2, c4), (3, c5)):
        before = max(image_size // grids[stage - 1].reduction, 1)
        for index in set(attending) & set(range(depths[stage])):
            side = max(before // grids[stage].stride, 1) if index else before  # later blocks see the strided map
            blocks[stage][index] = partial(attention, heads=heads, side=side, positions=positions, act=act)
    return ResNet(partial(stem, act=act), blocks, strides=strides, act=act, output_stride=output_stride, **settings)
