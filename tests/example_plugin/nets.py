"""An operator, and a backbone of it."""

from typing import Annotated, Unpack

from torch import nn

from cotnet.models.resnet import small_resnet
from cotnet.models.resnet_base import CommonConfig, ResNet
from cotnet.settings import Setting

Side = Annotated[int, Setting("height and width of the kernel; odd", least=1)]


def depthwise(width: int, stride: int, *, kernel_size: Side = 7, dilation: int = 1) -> dict[str, nn.Module]:
    """A depthwise convolution."""
    if kernel_size % 2 == 0:
        raise ValueError(f"a kernel of {kernel_size} has no centre; give an odd one")
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(width, width, kernel_size, stride, padding, dilation, groups=width, bias=False)
    return {"conv2": conv, "bn2": nn.BatchNorm2d(width), "act2": nn.ReLU(inplace=True)}


def bare(width: int, stride: int) -> nn.Module:
    """No operator: a module without a name."""
    return nn.Conv2d(width, width, 3, stride, 1)


def depthwise_net(
    *, width: Annotated[int, Setting("channels of the first stage", least=1)], **common: Unpack[CommonConfig]
) -> ResNet:
    """The small ResNet with depthwise convolutions."""
    return small_resnet(depthwise, width, **common)
