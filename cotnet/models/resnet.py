"""ResNet and its descendants by another operator, stem, shortcut or gate: ResNeXt, ResNet-D, SE-ResNet, ResNeSt.

He et al., "Deep Residual Learning for Image Recognition" (2015). State-dict keys are torchvision's for ResNet and
ResNeXt, timm's for the others.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from cotnet.models.layers import Activation, BlurredConv2d, SplitAttention, SqueezeExcite
from cotnet.models.skeleton import (
    Gate,
    Operator,
    Projection,
    ResNet,
    Settings,
    deep_stem,
    pooled_projection,
    projection,
    pyramid,
    small_stem,
    stem,
)


def convolution(width: int, stride: int, *, groups: int = 1, act: Activation = nn.ReLU) -> dict[str, nn.Module]:
    """The operator of ResNet, a 3x3 convolution; with groups, that of ResNeXt."""
    conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
    return {"conv2": conv, "bn2": nn.BatchNorm2d(width), "act2": act(inplace=True)}


def blurred_convolution(width: int, stride: int) -> dict[str, nn.Module]:
    """ResNet's operator; a strided one sees a blurred map."""
    blurred = {"conv2": BlurredConv2d(width, width, 3, stride, padding=1)} if stride > 1 else {}
    return {**convolution(width, stride), **blurred}


def blurred_projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """ResNet's shortcut; a strided one sees a blurred map."""
    if stride == 1:
        return projection(in_channels, channels, stride)
    return nn.Sequential(BlurredConv2d(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


def split_attention(width: int, stride: int) -> dict[str, nn.Module]:
    """The operator of ResNeSt; a strided block pools after it."""
    pool: dict[str, nn.Module] = {"avd": nn.AvgPool2d(3, stride, padding=1)} if stride > 1 else {}
    return {"conv2": SplitAttention(width, 1, radix=2, act=nn.ReLU), **pool}


grouped = partial(convolution, groups=32)  # the operator of ResNeXt


def resnet50(*, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0) -> ResNet:
    """ResNet-50, stride in the 3x3 convolution, torchvision's keys; 25.6 M parameters."""
    return _resnet((3, 4, 6, 3), in_channels, Settings(num_classes, drop_path, dropout))


def resnet50_blurpool(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """ResNet-50 with blurred maps before its strided convolutions but the stem's, as FFCV trains it; same keys."""
    settings = Settings(num_classes, drop_path, dropout)
    return _resnet((3, 4, 6, 3), in_channels, settings, operator=blurred_convolution, shortcut=blurred_projection)


def resnet101(*, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0) -> ResNet:
    """ResNet-101, stride in the 3x3 convolution, torchvision's keys; 44.5 M parameters."""
    return _resnet((3, 4, 23, 3), in_channels, Settings(num_classes, drop_path, dropout))


def resnet152(*, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0) -> ResNet:
    """ResNet-152, stride in the 3x3 convolution, torchvision's keys; 60.2 M parameters."""
    return _resnet((3, 8, 36, 3), in_channels, Settings(num_classes, drop_path, dropout))


def resnext50_32x4d(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """ResNeXt-50: Xie et al., "Aggregated Residual Transformations" (2017), table 1; 25.0 M parameters."""
    return _resnet((3, 4, 6, 3), in_channels, Settings(num_classes, drop_path, dropout), operator=grouped, width=128)


def resnext101_32x4d(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """ResNeXt-101: Xie et al., "Aggregated Residual Transformations" (2017), table 1; 44.2 M parameters."""
    return _resnet((3, 4, 23, 3), in_channels, Settings(num_classes, drop_path, dropout), operator=grouped, width=128)


def resnet50d(*, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0) -> ResNet:
    """ResNet-50-D: He et al., "Bag of Tricks" (2019), section 4; 25.6 M parameters."""
    return _resnet_d((3, 4, 6, 3), in_channels, Settings(num_classes, drop_path, dropout))


def resnet101d(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """ResNet-101-D: He et al., "Bag of Tricks" (2019), section 4; 44.6 M parameters."""
    return _resnet_d((3, 4, 23, 3), in_channels, Settings(num_classes, drop_path, dropout))


def seresnet50(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """SE-ResNet-50: Hu et al. (2018), table 1; 28.1 M parameters."""
    return _resnet((3, 4, 6, 3), in_channels, Settings(num_classes, drop_path, dropout), gate=SqueezeExcite)


def seresnet101(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """SE-ResNet-101: Hu et al. (2018), table 1; 49.3 M parameters."""
    return _resnet((3, 4, 23, 3), in_channels, Settings(num_classes, drop_path, dropout), gate=SqueezeExcite)


def seresnet50d(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """SE-ResNetD-50: both of the above; 28.1 M parameters."""
    return _resnet_d((3, 4, 6, 3), in_channels, Settings(num_classes, drop_path, dropout), gate=SqueezeExcite)


def resnest50(*, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0) -> ResNet:
    """ResNeSt-50, radix 2: Zhang et al. (2020); 27.5 M parameters."""
    return _resnest((3, 4, 6, 3), 32, in_channels, Settings(num_classes, drop_path, dropout))


def resnest101(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0
) -> ResNet:
    """ResNeSt-101, radix 2: Zhang et al. (2020); 48.3 M parameters."""
    return _resnest((3, 4, 23, 3), 64, in_channels, Settings(num_classes, drop_path, dropout))


def resnet_small(
    *, num_classes: int = 1000, in_channels: int = 3, drop_path: float = 0.0, dropout: float = 0.0, width: int = 16
) -> ResNet:
    """The twin of cotnet_small on plain 3x3 convolutions: the same stem, depth, widths and initialisation."""
    return small_resnet(convolution, width, in_channels, Settings(num_classes, drop_path, dropout))


def small_resnet(operator: Operator, width: int, in_channels: int, settings: Settings) -> ResNet:
    """Six bottlenecks for images of 28 to 64 pixels: no pooling in the stem, `width` channels in the first stage."""
    stages = pyramid(
        [[operator] * depth for depth in (1, 2, 2, 1)], width=width, channels=4 * width, strides=(2, 2, 2, 1)
    )
    return ResNet(small_stem(in_channels, width), stages, settings)


def _resnet(
    depths: Sequence[int],
    in_channels: int,
    settings: Settings,
    *,
    operator: Operator = convolution,
    shortcut: Projection = projection,
    width: int = 64,
    gate: Gate | None = None,
) -> ResNet:
    stages = pyramid([[operator] * depth for depth in depths], width=width)
    return ResNet(stem(in_channels), stages, settings, shortcut=shortcut, gate=gate, zero_last_norm=False)


def _resnet_d(depths: Sequence[int], in_channels: int, settings: Settings, *, gate: Gate | None = None) -> ResNet:
    stages = pyramid([[convolution] * depth for depth in depths])
    return ResNet(deep_stem(in_channels, 32), stages, settings, gate=gate, shortcut=pooled_projection)


def _resnest(depths: Sequence[int], stem_width: int, in_channels: int, settings: Settings) -> ResNet:
    stages = pyramid([[split_attention] * depth for depth in depths])
    return ResNet(deep_stem(in_channels, stem_width), stages, settings, shortcut=pooled_projection)
