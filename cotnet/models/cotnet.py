"""CoTNet: a ResNet whose 3x3 convolutions are Contextual Transformer blocks.

Li et al., "Contextual Transformer Networks for Visual Recognition" (2021), section 4. State-dict keys are
those of the authors' release.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from cotnet.models.contextual import CoTLayer, Fusion
from cotnet.models.layers import BlurPool, SplitAttention
from cotnet.models.resnet import convolution, small_resnet
from cotnet.models.skeleton import (
    Operator,
    ResNet,
    Settings,
    deep_stem,
    pooled_projection,
    pyramid,
    stem,
)


def cot(
    width: int,
    stride: int,
    *,
    kernel_size: int = 3,
    groups: int = 1,
    key_groups: int = 4,
    fusion: Fusion = "attention",
    dilation: int = 1,
) -> dict[str, nn.Module]:
    """The CoT operator of a bottleneck; a strided block pools before it."""
    pool: dict[str, nn.Module] = {"avd": nn.AvgPool2d(3, stride, padding=1)} if stride > 1 else {}
    layer = CoTLayer(width, kernel_size, groups=groups, key_groups=key_groups, fusion=fusion, dilation=dilation)
    return {**pool, "conv2": layer}


coxt = partial(cot, groups=2, key_groups=8)  # the operator of CoTNeXt


def split(width: int, stride: int) -> dict[str, nn.Module]:
    """The other operator of SE-CoTNetD: a 3x3 convolution with a gate, which is split attention of radix 1."""
    return {"conv2": SplitAttention(width, stride, radix=1, act=nn.SiLU)}


def blurred(width: int, stride: int, *, operator: Operator) -> dict[str, nn.Module]:
    """The operator at full resolution, then a blur pool that takes the stride."""
    return {**operator(width, 1), **({"avd": BlurPool(width, stride)} if stride > 1 else {})}


def cotnet50(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    stages: tuple[int, ...] = (1, 2, 3, 4),
    fusion: Fusion = "attention",
    kernel_size: int = 3,
    dilation: int = 1,
) -> ResNet:
    """CoTNet-50: 22.2 M parameters, 3.3 G multiply-adds at 224 px.

    `stages` carry CoT, the others 3x3 convolutions; `fusion` as in CoTLayer.
    """
    operator = partial(cot, fusion=fusion, kernel_size=kernel_size, dilation=dilation)
    return _cotnet((3, 4, 6, 3), in_channels, Settings(num_classes, drop_path, dropout), operator, stages)


def cotnet101(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    stages: tuple[int, ...] = (1, 2, 3, 4),
    fusion: Fusion = "attention",
    kernel_size: int = 3,
    dilation: int = 1,
) -> ResNet:
    """CoTNet-101: 38.3 M parameters, 6.1 G multiply-adds at 224 px; settings as of cotnet50."""
    operator = partial(cot, fusion=fusion, kernel_size=kernel_size, dilation=dilation)
    return _cotnet((3, 4, 23, 3), in_channels, Settings(num_classes, drop_path, dropout), operator, stages)


def cotnext50_2x48d(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """CoTNeXt-50 (2x48d): 30.0 M parameters, 4.3 G multiply-adds at 224 px."""
    return _cotnet((3, 4, 6, 3), in_channels, Settings(num_classes, drop_path, dropout), coxt, width=96)


def cotnext101_2x48d(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """CoTNeXt-101 (2x48d): 53.3 M parameters, 8.1 G multiply-adds at 224 px."""
    return _cotnet((3, 4, 23, 3), in_channels, Settings(num_classes, drop_path, dropout), coxt, width=96)


def se_cotnetd_50(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    stages: tuple[int, ...] = (3, 4),
    alternate: tuple[int, ...] = (3,),
) -> ResNet:
    """SE-CoTNetD-50: 23.1 M parameters, 4.0 G multiply-adds at 224 px.

    `stages` carry CoT, those of `alternate` in every other block; all other blocks are gated convolutions.
    """
    settings = Settings(num_classes, drop_path, dropout)
    return _se_cotnetd((3, 4, 6, 3), 32, in_channels, settings, stages=stages, alternate=alternate)


def se_cotnetd_101(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """SE-CoTNetD-101: 40.9 M parameters, 8.4 G multiply-adds at 224 px."""
    return _se_cotnetd((3, 4, 23, 3), 64, in_channels, Settings(num_classes, drop_path, dropout))


def se_cotnetd_152(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """SE-CoTNetD-152: 55.8 M parameters, 16.8 G multiply-adds at 256 px; made for 256 and 320 px."""
    operators = [partial(blurred, operator=operator) for operator in (cot, split)]
    return _se_cotnetd((3, 8, 36, 3), 64, in_channels, Settings(num_classes, drop_path, dropout), operators=operators)


def cotnet_small(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    width: int = 16,
    fusion: Fusion = "attention",
) -> ResNet:
    """A CoTNet of our own for images of 28 to 64 pixels: no pooling in the stem, narrow stages; not in the paper.

    `width`, a multiple of 8, is that of the stem and of the first stage; `fusion` as in CoTLayer.
    """
    return small_resnet(partial(cot, fusion=fusion), width, in_channels, Settings(num_classes, drop_path, dropout))


def _cotnet(
    depths: Sequence[int],
    in_channels: int,
    settings: Settings,
    operator: Operator,
    stages: Sequence[int] = (1, 2, 3, 4),
    *,
    width: int = 64,
) -> ResNet:
    _check_stages(stages)
    blocks = [[operator if level in stages else convolution] * depth for level, depth in enumerate(depths, start=1)]
    return ResNet(stem(in_channels), pyramid(blocks, width=width), settings)


def _se_cotnetd(
    depths: Sequence[int],
    stem_width: int,
    in_channels: int,
    settings: Settings,
    *,
    operators: Sequence[Operator] = (cot, split),
    stages: Sequence[int] = (3, 4),
    alternate: Sequence[int] = (3,),
) -> ResNet:
    _check_stages((*stages, *alternate))
    blocks = []
    for level, depth in enumerate(depths, start=1):
        carries = [level in stages and (index % 2 == 0 or level not in alternate) for index in range(depth)]
        blocks.append([operators[0] if carry else operators[1] for carry in carries])
    first = deep_stem(in_channels, stem_width, pool=False)
    return ResNet(first, pyramid(blocks, strides=(2, 2, 2, 2)), settings, shortcut=pooled_projection)


def _check_stages(stages: Sequence[int]) -> None:
    if not set(stages) <= {1, 2, 3, 4}:
        raise ValueError(f"stages {tuple(stages)} are not all among 1, 2, 3, 4")
