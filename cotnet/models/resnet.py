"""ResNet and its descendants with another operator, stem, shortcut or gate: ResNeXt, ResNet-D, SE-ResNet, ResNeSt.

He et al., "Deep Residual Learning for Image Recognition" (2015). State-dict keys are torchvision's for ResNet and
ResNeXt, timm's for the others.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, Unpack

from torch import nn

from cotnet.models.layers import Activation, BlurredConv2d, SelectiveKernel, SplitAttention, SqueezeExcite, conv_norm
from cotnet.models.resnet_base import (
    Operator,
    ResNet,
    ResNetConfig,
    SmallWidth,
    deep_stem,
    pooled_projection,
    small_stem,
    stem,
)
from cotnet.models.spec import constructor
from cotnet.settings import Setting

__all__ = ["resnet50", "resnet50_blurpool", "resnet50d", "resnet101", "resnet101d", "resnet152", "resnet_small"]
__all__ += ["resnest50", "resnest101", "resnext50_32x4d", "resnext101_32x4d"]
__all__ += ["seresnet50", "seresnet50d", "seresnet101", "sknet50"]


StageNumbers = tuple[Literal[1, 2, 3, 4], ...]
OperatorStages = Annotated[StageNumbers, Setting("stages, from 1, that use the operator; the others are convolutions")]
DEPTHS = (3, 4, 6, 3)  # blocks in the stages of ResNet-50
SMALL_DEPTHS = (1, 2, 2, 1)  # of the small networks
SMALL_STRIDES = (2, 2, 2, 1)


def in_stages(operator: Operator, stages: Sequence[int], depths: Sequence[int]) -> list[list[Operator]]:
    """The operator in all blocks of `stages`, counted from 1, and convolutions in the others."""
    return [[operator if level in stages else convolution] * depth for level, depth in enumerate(depths, start=1)]


def convolution(
    width: int, stride: int, *, groups: int = 1, act: Activation = nn.ReLU, dilation: int = 1
) -> dict[str, nn.Module]:
    """The operator of ResNet, a 3x3 convolution; with groups, the operator of ResNeXt."""
    conv, norm = conv_norm(width, width, 3, stride, dilation=dilation, groups=groups)
    return {"conv2": conv, "bn2": norm, "act2": act(inplace=True)}


def blurred_convolution(width: int, stride: int, *, dilation: int = 1) -> dict[str, nn.Module]:
    """ResNet's operator; a strided one blurs its input first."""
    operator = convolution(width, stride, dilation=dilation)
    if stride > 1:
        operator["conv2"] = BlurredConv2d(width, width, 3, stride, dilation, dilation, bias=False)
    return operator


def blurred_projection(in_channels: int, channels: int, stride: int, *, dilation: int = 1) -> nn.Module:  # noqa: ARG001
    """ResNet's shortcut; a strided one blurs its input first."""
    kind = BlurredConv2d if stride > 1 else nn.Conv2d
    return nn.Sequential(kind(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


def split_attention(width: int, stride: int, *, dilation: int = 1) -> dict[str, nn.Module]:
    """The operator of ResNeSt; a strided block pools after it."""
    pool: dict[str, nn.Module] = {"avd": nn.AvgPool2d(3, stride, padding=1)} if stride > 1 else {}
    return {"conv2": SplitAttention(width, 1, radix=2, act=nn.ReLU, dilation=dilation), **pool}


grouped = partial(convolution, groups=32)  # the operator of ResNeXt


def selective_kernel(width: int, stride: int, *, groups: int = 32, dilation: int = 1) -> dict[str, nn.Module]:
    """The operator of SKNet."""
    return {"conv2": SelectiveKernel(width, stride, groups=groups, dilation=dilation)}


@constructor
def resnet50(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-50, stride in the 3x3 convolution, torchvision's keys; 25.6 M parameters."""
    return _resnet((3, 4, 6, 3), **common)


@constructor
def resnet50_blurpool(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-50 with blurred inputs of its strided convolutions, except the stem's, as FFCV trains it; same keys."""
    return _resnet((3, 4, 6, 3), operator=blurred_convolution, shortcut=blurred_projection, **common)


@constructor
def resnet101(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-101, stride in the 3x3 convolution, torchvision's keys; 44.5 M parameters."""
    return _resnet((3, 4, 23, 3), **common)


@constructor
def resnet152(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-152, stride in the 3x3 convolution, torchvision's keys; 60.2 M parameters."""
    return _resnet((3, 8, 36, 3), **common)


@constructor
def resnext50_32x4d(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNeXt-50: Xie et al., "Aggregated Residual Transformations" (2017), table 1; 25.0 M parameters."""
    return _resnet((3, 4, 6, 3), operator=grouped, width=128, **common)


@constructor
def resnext101_32x4d(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNeXt-101: Xie et al., "Aggregated Residual Transformations" (2017), table 1; 44.2 M parameters."""
    return _resnet((3, 4, 23, 3), operator=grouped, width=128, **common)


@constructor
def resnet50d(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-50-D: He et al., "Bag of Tricks" (2019), section 4; 25.6 M parameters."""
    return _resnet_d((3, 4, 6, 3), **common)


@constructor
def resnet101d(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNet-101-D: He et al., "Bag of Tricks" (2019), section 4; 44.6 M parameters."""
    return _resnet_d((3, 4, 23, 3), **common)


@constructor
def seresnet50(**common: Unpack[ResNetConfig]) -> ResNet:
    """SE-ResNet-50: Hu et al. (2018), table 1; 28.1 M parameters."""
    return _resnet((3, 4, 6, 3), gate=SqueezeExcite, **common)


@constructor
def seresnet101(**common: Unpack[ResNetConfig]) -> ResNet:
    """SE-ResNet-101: Hu et al. (2018), table 1; 49.3 M parameters."""
    return _resnet((3, 4, 23, 3), gate=SqueezeExcite, **common)


@constructor
def seresnet50d(**common: Unpack[ResNetConfig]) -> ResNet:
    """SE-ResNetD-50: the gates of SE-ResNet in a ResNet-50-D; 28.1 M parameters."""
    return _resnet_d((3, 4, 6, 3), gate=SqueezeExcite, **common)


@constructor
def sknet50(
    *,
    stages: OperatorStages = (1, 2, 3, 4),
    **common: Unpack[ResNetConfig],
) -> ResNet:
    """SKNet-50: Li et al., "Selective Kernel Networks" (2019), table 1; 27.5 M parameters."""
    return ResNet(stem, in_stages(selective_kernel, stages, DEPTHS), width=128, **common)


@constructor
def resnest50(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNeSt-50, radix 2: Zhang et al. (2020); 27.5 M parameters."""
    return _resnet_d((3, 4, 6, 3), operator=split_attention, **common)


@constructor
def resnest101(**common: Unpack[ResNetConfig]) -> ResNet:
    """ResNeSt-101, radix 2: Zhang et al. (2020); 48.3 M parameters."""
    return _resnet_d((3, 4, 23, 3), operator=split_attention, stem_width=64, **common)


@constructor
def resnet_small(*, width: SmallWidth = 16, **common: Unpack[ResNetConfig]) -> ResNet:
    """The twin of cotnet_small with plain 3x3 convolutions: the same stem, depth, widths and initialisation."""
    return small_resnet(convolution, width, **common)


def small_resnet(operator: Operator, width: int, **common: Unpack[ResNetConfig]) -> ResNet:
    """Six bottlenecks for images of 28 to 64 pixels: no pooling in the stem, `width` channels in the first stage."""
    return small_network([[operator] * depth for depth in SMALL_DEPTHS], width, channels=4 * width, **common)


def small_network(blocks: Sequence[Sequence[Operator]], width: int, *, channels: int, **settings: Any) -> ResNet:
    """As small_resnet, with the operators of each stage, SMALL_DEPTHS of them, and the channels between the blocks of
    the first stage."""
    first = partial(small_stem, channels=width)
    return ResNet(first, blocks, width=width, channels=channels, strides=SMALL_STRIDES, **settings)


def _resnet(depths: Sequence[int], *, operator: Operator = convolution, **settings: Any) -> ResNet:
    return ResNet(stem, [[operator] * depth for depth in depths], zero_last_norm=False, **settings)


def _resnet_d(
    depths: Sequence[int], *, operator: Operator = convolution, stem_width: int = 32, **settings: Any
) -> ResNet:
    first = partial(deep_stem, width=stem_width)
    return ResNet(first, [[operator] * depth for depth in depths], shortcut=pooled_projection, **settings)
