"""CoTNet: a ResNet whose 3x3 convolutions are Contextual Transformer blocks.

Li et al., "Contextual Transformer Networks for Visual Recognition" (2021), section 4. State-dict keys are
those of the authors' release.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Unpack

from torch import nn

from cotnet.models.contextual import CoTLayer, Fusion
from cotnet.models.layers import BlurPool, SplitAttention
from cotnet.models.resnet import StageNumbers, in_stages, small_resnet
from cotnet.models.resnet_base import Operator, ResNet, ResNetConfig, SmallWidth, deep_stem, pooled_projection, stem
from cotnet.models.spec import constructor
from cotnet.settings import Setting

__all__ = ["cotnet50", "cotnet101", "cotnet_small", "cotnext50_2x48d", "cotnext101_2x48d"]
__all__ += ["se_cotnetd_50", "se_cotnetd_101", "se_cotnetd_152"]

Stages = Annotated[StageNumbers, Setting("stages, from 1, whose blocks are CoT; the others are convolutions")]
CoTFusion = Annotated[Fusion, Setting("`static` or `dynamic` context; `linear`: their sum; `attention`: weighted sum")]


class CoTNetConfig(ResNetConfig, total=False):
    """The settings of CoTNet-50 and CoTNet-101."""

    stages: Stages
    fusion: CoTFusion
    kernel_size: Annotated[int, Setting("height and width of CoT's kernels; odd", least=1)]
    dilation: Annotated[int, Setting("distance between the positions of a CoT kernel, in pixels", least=1)]


def cot(width: int, stride: int, *, dilation: int = 1, **settings: Any) -> dict[str, nn.Module]:
    """The operator of CoTNet, with CoTLayer's settings; a strided block pools before it."""
    pool = {"avd": nn.AvgPool2d(3, stride, padding=1)} if stride > 1 else {}
    return {**pool, "conv2": CoTLayer(width, dilation=dilation, **settings)}


coxt = partial(cot, groups=2, key_groups=8)  # the operator of CoTNeXt


def split(width: int, stride: int, *, dilation: int = 1) -> dict[str, nn.Module]:
    """The other operator of SE-CoTNetD: a gated 3x3 convolution (split attention of radix 1)."""
    return {"conv2": SplitAttention(width, stride, radix=1, act=nn.SiLU, dilation=dilation)}


def blurred(width: int, stride: int, *, operator: Operator, dilation: int = 1) -> dict[str, nn.Module]:
    """The operator at full resolution, then a blur pool with the stride."""
    return {**operator(width, 1, dilation=dilation), **({"avd": BlurPool(width, stride)} if stride > 1 else {})}


@constructor
def cotnet50(**settings: Unpack[CoTNetConfig]) -> ResNet:
    """CoTNet-50: 22.2 M parameters, 3.3 G multiply-adds at 224 px."""
    return _cotnet((3, 4, 6, 3), cot, **settings)


@constructor
def cotnet101(**settings: Unpack[CoTNetConfig]) -> ResNet:
    """CoTNet-101: 38.3 M parameters, 6.1 G multiply-adds at 224 px."""
    return _cotnet((3, 4, 23, 3), cot, **settings)


@constructor
def cotnext50_2x48d(**common: Unpack[ResNetConfig]) -> ResNet:
    """CoTNeXt-50 (2x48d): 30.0 M parameters, 4.3 G multiply-adds at 224 px."""
    return _cotnet((3, 4, 6, 3), coxt, width=96, **common)


@constructor
def cotnext101_2x48d(**common: Unpack[ResNetConfig]) -> ResNet:
    """CoTNeXt-101 (2x48d): 53.3 M parameters, 8.1 G multiply-adds at 224 px."""
    return _cotnet((3, 4, 23, 3), coxt, width=96, **common)


@constructor
def se_cotnetd_50(
    *,
    stages: Stages = (3, 4),
    alternate: Annotated[StageNumbers, Setting("stages of them in which only every other block is CoT")] = (3,),
    **common: Unpack[ResNetConfig],
) -> ResNet:
    """SE-CoTNetD-50: 23.1 M parameters, 4.0 G multiply-adds at 224 px."""
    return _se_cotnetd((3, 4, 6, 3), stem_width=32, stages=stages, alternate=alternate, **common)


@constructor
def se_cotnetd_101(**common: Unpack[ResNetConfig]) -> ResNet:
    """SE-CoTNetD-101: 40.9 M parameters, 8.4 G multiply-adds at 224 px."""
    return _se_cotnetd((3, 4, 23, 3), **common)


@constructor
def se_cotnetd_152(**common: Unpack[ResNetConfig]) -> ResNet:
    """SE-CoTNetD-152: 55.8 M parameters, 16.8 G multiply-adds at 256 px; made for 256 and 320 px."""
    operators = [partial(blurred, operator=operator) for operator in (cot, split)]
    return _se_cotnetd((3, 8, 36, 3), operators=operators, **common)


@constructor
def cotnet_small(*, width: SmallWidth = 16, fusion: CoTFusion = "attention", **common: Unpack[ResNetConfig]) -> ResNet:
    """A CoTNet of this project for images of 28 to 64 pixels: narrow stages, no pooling in the stem."""
    return small_resnet(partial(cot, fusion=fusion), width, **common)


def _cotnet(
    depths: Sequence[int],
    operator: Callable[..., dict[str, nn.Module]],
    *,
    stages: Sequence[int] = (1, 2, 3, 4),
    width: int = 64,
    fusion: Fusion = "attention",
    kernel_size: int = 3,
    dilation: int = 1,
    **common: Any,
) -> ResNet:
    attend = partial(operator, fusion=fusion, kernel_size=kernel_size, dilation=dilation)
    return ResNet(stem, in_stages(attend, stages, depths), width=width, **common)


def _se_cotnetd(
    depths: Sequence[int],
    *,
    stem_width: int = 64,
    operators: Sequence[Operator] = (cot, split),
    stages: Sequence[int] = (3, 4),
    alternate: Sequence[int] = (3,),
    **common: Unpack[ResNetConfig],
) -> ResNet:
    blocks = []
    for level, depth in enumerate(depths, start=1):
        attends = [level in stages and (index % 2 == 0 or level not in alternate) for index in range(depth)]
        blocks.append([operators[0] if attend else operators[1] for attend in attends])
    first = partial(deep_stem, width=stem_width, pool=False)
    return ResNet(first, blocks, strides=(2, 2, 2, 2), shortcut=pooled_projection, **common)
