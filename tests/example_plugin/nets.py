"""An operator, and a backbone of it."""

from typing import Annotated, Unpack

from torch import nn

from cotnet.models.resnet import small_resnet
from cotnet.models.resnet_base import CommonConfig, ResNet
from cotnet.settings import Setting


def depthwise(width: int, stride: int) -> dict[str, nn.Module]:
    """A depthwise 7x7 convolution."""
    conv = nn.Conv2d(width, width, 7, stride, padding=3, groups=width, bias=False)
    return {"conv2": conv, "bn2": nn.BatchNorm2d(width), "act2": nn.ReLU(inplace=True)}


def depthwise_net(
    *, width: Annotated[int, Setting("channels of the first stage", least=1)], **common: Unpack[CommonConfig]
) -> ResNet:
    """The small ResNet with depthwise convolutions."""
    return small_resnet(depthwise, width, **common)
