"""Self-attention to the neighbourhood of each position, instead of 3x3 convolutions: Stand-Alone, LR-Net, HaloNet.

Ramachandran et al., "Stand-Alone Self-Attention in Vision Models" (2019); Hu et al., "Local Relation Networks for Image
Recognition" (2019); Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (2021).
Positions beyond the border are zeros and take part in the softmax.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Unpack

import torch
from torch import nn
from torch.nn import functional as F

from cotnet.models.layers import HalvingPool
from cotnet.models.resnet import DEPTHS, OperatorStages, in_stages
from cotnet.models.resnet_base import ResNet, ResNetConfig, Stem, stem
from cotnet.models.spec import constructor
from cotnet.ops import local_aggregation, neighbours
from cotnet.settings import Setting

__all__ = ["halonet50", "lr_net50", "stand_alone50"]

# torch.fx records these calls whole: they look at shapes.
torch.fx.wrap("local_aggregation")
torch.fx.wrap("local_attention")
torch.fx.wrap("mixed_values")
torch.fx.wrap("local_relation_weights")
Heads = Annotated[int, Setting("attention heads; a divisor of the stages' width", least=1)]
KernelSize = Annotated[int, Setting("height and width of the neighbourhood; odd", least=1)]


def require_divisor(layer: str, width: int, divisor: int, what: str) -> None:
    """Raises ValueError unless `divisor` divides `width`."""
    if width % divisor:
        raise ValueError(f"{layer} cannot divide {width} channels among {divisor} {what}; give a divisor of {width}")


class StandAloneAttention(nn.Module):
    """Multi-head attention of each position to its K x K neighbours: (B, width, H, W) -> the same, any H and W.

    softmax(q^T k + q^T r) v, where r joins an embedding of the row's and one of the column's offset (section 3.1,
    equation 3). Channel c belongs to head c % heads. Raises ValueError if `heads` does not divide `width` into heads of
    an even number of channels, or for an even kernel size.
    """

    def __init__(self, width: int, *, kernel_size: int = 7, heads: int = 8, dilation: int = 1) -> None:
        super().__init__()
        require_divisor("StandAloneAttention", width, 2 * heads, "halves of heads")
        _require_odd(kernel_size)
        self.heads, self.kernel_size, self.dilation = heads, kernel_size, dilation
        self.query, self.key, self.value = (nn.Conv2d(width, width, 1, bias=False) for _ in range(3))
        self.rows, self.columns = (nn.Parameter(torch.randn(kernel_size, width // heads // 2)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = (projection(x).unflatten(1, (-1, self.heads)) for projection in (self.query, self.key))
        attention = local_attention(query, key, self.rows, self.columns, dilation=self.dilation)
        return local_aggregation(self.value(x), attention, dilation=self.dilation)


def local_attention(
    query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, *, dilation: int = 1
) -> torch.Tensor:
    """The softmax over the neighbours: (B, d, heads, H, W) twice and tables (K, d / 2) -> (B, heads, K * K, H, W).

    The logits are divided by the root of d. Equation 3 has no such scale, with which fresh weights do not saturate.
    """
    size = len(rows)
    query = query * query.shape[1] ** -0.5
    near = neighbours(key, size, dilation=dilation)  # (B, d, heads, some, H, W)
    content = torch.cat([(query.unsqueeze(3) * some).sum(1) for some in near], 2)
    embedding = torch.cat([rows.repeat_interleave(size, 0), columns.repeat(size, 1)], 1)  # (K * K, d)
    return (content + torch.einsum("bdghw,kd->bgkhw", query, embedding)).softmax(2)


class StandAloneStem(nn.Module):
    """The attention stem: as StandAloneAttention over 4 x 4 pixels, with values that depend on the offset.

    (B, in_channels, H, W) -> (B, channels, H, W). The value at an offset is a mixture of `mixtures` projections; the
    offset's embedding chooses the weights (section 3.3, equation 4).
    """

    def __init__(
        self, in_channels: int, channels: int, *, kernel_size: int = 4, heads: int = 8, mixtures: int = 4
    ) -> None:
        super().__init__()
        self.kernel_size, self.heads, self.mixtures = kernel_size, heads, mixtures
        self.query, self.key = (nn.Conv2d(in_channels, channels, 1, bias=False) for _ in range(2))
        self.value = nn.Conv2d(in_channels, mixtures * channels, 1, bias=False)
        half = channels // heads // 2
        self.rows, self.columns = (nn.Parameter(torch.randn(kernel_size, half)) for _ in range(2))
        self.mixture_rows, self.mixture_columns = (nn.Parameter(torch.randn(kernel_size, channels)) for _ in range(2))
        self.mixture = nn.Parameter(torch.randn(mixtures, channels) * channels**-0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query, key = (projection(images).unflatten(1, (-1, self.heads)) for projection in (self.query, self.key))
        attention = local_attention(query, key, self.rows, self.columns)
        offsets = self.mixture_rows.unsqueeze(1) + self.mixture_columns  # (K, K, C)
        shares = (offsets.flatten(0, 1) @ self.mixture.t()).softmax(1)  # (K * K, mixtures)
        values = self.value(images).unflatten(1, (self.mixtures, -1, self.heads))  # (B, mixtures, d, heads, H, W)
        return mixed_values(values, shares, attention).flatten(1, 2)


def mixed_values(values: torch.Tensor, shares: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Sum over the window of the mixture for each offset, weighted by attention.

    (B, mixtures, d, heads, H, W), (K * K, mixtures) and (B, heads, K * K, H, W) -> (B, d, heads, H, W).
    """
    result = torch.zeros_like(values[:, 0])
    each = (one for some in neighbours(values, math.isqrt(len(shares))) for one in some.unbind(4))
    for position, near in enumerate(each):
        value = torch.einsum("m,bmdghw->bdghw", shares[position], near)
        result = result + value * attention[:, :, position].unsqueeze(1)
    return result


class LocalRelation(nn.Module):
    """The local relation layer: (B, width, H, W) -> the same, any H and W.

    softmax(q k + geometry) over the K x K neighbours, where a query and a key are one number for `share` channels and
    geometry is a small network of the offset; the weighted sum passes a 1x1 convolution (section 3.2, equations 3 to
    6). Raises ValueError if `share` does not divide `width`, or for an even kernel size.
    """

    offsets: torch.Tensor

    def __init__(self, width: int, *, kernel_size: int = 7, share: int = 8, dilation: int = 1) -> None:
        super().__init__()
        require_divisor("LocalRelation", width, share, "channels that share their weights")
        _require_odd(kernel_size)
        self.kernel_size, self.dilation, groups = kernel_size, dilation, width // share
        self.query, self.key = (nn.Conv2d(width, groups, 1) for _ in range(2))
        self.geometry = nn.Sequential(nn.Linear(2, groups), nn.ReLU(inplace=True), nn.Linear(groups, groups))
        self.transform = nn.Conv2d(width, width, 1, bias=False)
        line = torch.arange(kernel_size) - kernel_size // 2.0
        self.register_buffer("offsets", torch.cartesian_prod(line, line), persistent=False)  # (K * K, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = self.query(x), self.key(x)  # (B, G, H, W)
        weights = local_relation_weights(query, key, self.geometry(self.offsets), dilation=self.dilation)
        return self.transform(local_aggregation(x, weights, dilation=self.dilation))


def local_relation_weights(
    query: torch.Tensor, key: torch.Tensor, geometry: torch.Tensor, *, dilation: int = 1
) -> torch.Tensor:
    """The softmax over the neighbours: (B, G, H, W) twice and geometry (K * K, G) -> (B, G, K * K, H, W)."""
    near = neighbours(key, math.isqrt(len(geometry)), dilation=dilation)  # (B, G, some, H, W)
    relation = torch.cat([query.unsqueeze(2) * some for some in near], 2)
    return (relation + geometry.t()[..., None, None]).softmax(2)


class HaloAttention(nn.Module):
    """Attention of blocks of queries to the block and a halo around it: (B, width, H, W) -> the same, any H and W.

    A block of `block` x `block` queries shares the keys of block + 2 * halo rows and columns (section 3.1, figure 2).
    Names, and the scale of q^T k but not of the positions, are those of timm's layer. Raises ValueError if `heads` does
    not divide `width`.
    """

    def __init__(self, width: int, *, heads: int = 8, block: int = 8, halo: int = 3) -> None:
        super().__init__()
        require_divisor("HaloAttention", width, heads, "heads")
        self.heads, self.block, self.halo = heads, block, halo
        self.window, channels = block + 2 * halo, width // heads
        self.q = nn.Conv2d(width, width, 1, bias=False)
        self.kv = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.pos_embed = nn.ParameterDict(
            {name: torch.randn(2 * self.window - 1, channels) * channels**-0.5 for name in ("height_rel", "width_rel")}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        below, right = -height % self.block, -width % self.block
        query = F.pad(self.q(x), [0, right, 0, below])
        halo = self.halo
        keys_values = F.pad(self.kv(x), [halo, halo + right, halo, halo + below]).unflatten(1, (self.heads, -1))
        query = self.cut(query.unflatten(1, (self.heads, -1)), self.block)  # (B, heads, rows, columns, b, b, d)
        key, value = self.cut(keys_values, self.window).chunk(2, 6)
        blocks = query.shape[1:4]
        # Heads, rows and columns as one dimension: ONNX has four-dimensional attention only.
        query, key, value = (part.flatten(1, 3) for part in (query, key, value))
        bias = self.position_logits(query)
        query, key, value = (part.flatten(2, 3) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).unflatten(1, blocks)
        attended = attended.unflatten(4, (self.block, -1)).permute(0, 1, 6, 2, 4, 3, 5)
        return attended.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, :, :height, :width]

    def cut(self, maps: torch.Tensor, window: int) -> torch.Tensor:
        """(B, heads, d, H, W) -> windows of all blocks, (B, heads, rows, columns, window, window, d)."""
        return maps.unfold(3, window, self.block).unfold(4, window, self.block).movedim(2, 6)

    def position_logits(self, query: torch.Tensor) -> torch.Tensor:
        """q^T r: (B, blocks, b, b, d) -> (B, blocks, b * b, window * window)."""
        near, own = (torch.arange(size, device=query.device) for size in (self.window, self.block))
        offsets = near - own.unsqueeze(1) + self.window - 1  # (b, window)
        rows = torch.einsum("bnyxd,yzd->bnyxz", query, self.pos_embed["height_rel"][offsets])
        columns = torch.einsum("bnyxd,xwd->bnyxw", query, self.pos_embed["width_rel"][offsets])
        return (rows.unsqueeze(5) + columns.unsqueeze(4)).flatten(4, 5).flatten(2, 3)


def _require_odd(kernel_size: int) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size} has no centre; give an odd one")


def attending(width: int, stride: int, *, layer: Callable[..., nn.Module], **settings: Any) -> dict[str, nn.Module]:
    """An operator of one layer, with its settings; a strided block pools 2x2 after it."""
    pool = {"avd": HalvingPool()} if stride > 1 else {}
    return {"conv2": layer(width, **settings), **pool, "bn2": nn.BatchNorm2d(width), "act2": nn.ReLU(inplace=True)}


def stand_alone(width: int, stride: int, *, dilation: int = 1, **settings: Any) -> dict[str, nn.Module]:
    """The operator of Stand-Alone, with StandAloneAttention's settings."""
    return attending(width, stride, layer=StandAloneAttention, dilation=dilation, **settings)


def local_relation(width: int, stride: int, *, kernel_size: int = 7, dilation: int = 1) -> dict[str, nn.Module]:
    """The operator of LR-Net: 8 channels share their weights, 4 where 8 does not divide the width."""
    settings = {"kernel_size": kernel_size, "dilation": dilation, "share": 4 if width % 8 else 8}
    return attending(width, stride, layer=LocalRelation, **settings)


def halo(width: int, stride: int, *, dilation: int = 1, **settings: Any) -> dict[str, nn.Module]:  # noqa: ARG001
    """The operator of HaloNet, with HaloAttention's settings. Blocks and halos keep their sizes, as in timm."""
    return attending(width, stride, layer=HaloAttention, **settings)


def attention_stem(in_channels: int) -> Stem:
    """StandAloneStem and a 4x4 pool (section 4.1)."""
    modules: dict[str, nn.Module] = {"conv1": StandAloneStem(in_channels, 64), "bn1": nn.BatchNorm2d(64)}
    return Stem(modules | {"act1": nn.ReLU(inplace=True), "maxpool": nn.MaxPool2d(4)}, 64, 4)


@constructor
def stand_alone50(
    *,
    stages: OperatorStages = (1, 2, 3, 4),
    attention_in_stem: Annotated[bool, Setting("whether the stem attends too")] = True,
    heads: Heads = 8,
    kernel_size: KernelSize = 7,
    **common: Unpack[ResNetConfig],
) -> ResNet:
    """ResNet-50 with stand-alone self-attention: 18.0 M parameters."""
    operator = partial(stand_alone, heads=heads, kernel_size=kernel_size)
    first = attention_stem if attention_in_stem else stem
    return ResNet(first, in_stages(operator, stages, DEPTHS), **common)


@constructor
def lr_net50(
    *, stages: OperatorStages = (1, 2, 3, 4), kernel_size: KernelSize = 7, **common: Unpack[ResNetConfig]
) -> ResNet:
    """LR-Net-50: local relation layers, 100 channels in the first stage (table 1); 23.3 M parameters."""
    operator = partial(local_relation, kernel_size=kernel_size)
    return ResNet(stem, in_stages(operator, stages, DEPTHS), width=100, **common)


@constructor
def halonet50(
    *,
    stages: OperatorStages = (3, 4),
    heads: Heads = 8,
    block: Annotated[int, Setting("height and width of a block of queries, in positions", least=1)] = 8,
    halo_size: Annotated[int, Setting("width of the halo around a block, in positions", least=0)] = 3,
    **common: Unpack[ResNetConfig],
) -> ResNet:
    """ResNet-50 with halo attention in its last two stages."""
    operator = partial(halo, heads=heads, block=block, halo=halo_size)
    return ResNet(stem, in_stages(operator, stages, DEPTHS), **common)
