"""The residual network that all convolutional families share: stem, stages of bottlenecks, head.

He et al., "Deep Residual Learning for Image Recognition" (2015). A bottleneck is a 1x1 convolution, a spatial
operator and a 1x1 convolution, added to its shortcut (section 4.1, figure 5). The families differ in the operator, so
a stage lists one operator per block. Module names, and so state-dict keys, are the published ones.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from operator import mul
from typing import Annotated, NamedTuple, TypedDict

import torch
from torch import nn

from cotnet.models.checkpointing import Stage
from cotnet.models.layers import Activation, DropPath, HalvingPool, chain, conv_norm, growing, new_head
from cotnet.settings import Setting

# (width, stride) -> the named modules between bn1 and conv3; they downsample by the stride.
Operator = Callable[[int, int], dict[str, nn.Module]]
# (in_channels, channels, stride) -> the shortcut of a block that changes the shape.
Projection = Callable[[int, int, int], nn.Module]
# channels -> a module after bn3.
Gate = Callable[[int], nn.Module]


# Settings that several constructors share.
NumClasses = Annotated[int, Setting("classes that the backbone tells apart", least=1)]
ImageSize = Annotated[int, Setting("nominal height and width of the position tables, in pixels", least=1)]
SmallWidth = Annotated[int, Setting("channels of the first stage; `cotnet_small`: a multiple of 8", least=1)]


class CommonConfig(TypedDict, total=False):
    """The settings that every constructor takes."""

    num_classes: NumClasses
    in_channels: Annotated[int, Setting("channels of the images", least=1)]
    drop_path: Annotated[float, Setting("probability of skipping the last block; grows with depth", least=0, most=1)]
    dropout: Annotated[float, Setting("probability of zeroing a feature before the classifier", least=0, most=1)]


class Stem(NamedTuple):
    """The named modules before the stages, their output channels and their total stride."""

    modules: dict[str, nn.Module]
    channels: int
    stride: int


def stem(in_channels: int, *, act: Activation = nn.ReLU) -> Stem:
    """7x7 convolution and max pool, both of stride 2 (table 1)."""
    conv, norm = conv_norm(in_channels, 64, 7, stride=2)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return Stem({"conv1": conv, "bn1": norm, "act1": act(inplace=True), "maxpool": pool}, 64, 4)


def deep_stem(in_channels: int, width: int, *, pool: bool = True) -> Stem:
    """Three 3x3 convolutions instead of the 7x7: He et al., "Bag of Tricks" (2019), figure 2, ResNet-C."""
    first, second = conv_norm(in_channels, width, 3, stride=2), conv_norm(width, width, 3)
    last, norm = conv_norm(width, 2 * width, 3)
    convs = nn.Sequential(*first, nn.ReLU(inplace=True), *second, nn.ReLU(inplace=True), last)
    modules = {"conv1": convs, "bn1": norm, "act1": nn.ReLU(inplace=True)}
    if pool:
        modules["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return Stem(modules, 2 * width, 4 if pool else 2)


def small_stem(in_channels: int, channels: int) -> Stem:
    """One 3x3 convolution of stride 1, for images of 28 to 64 pixels."""
    conv, norm = conv_norm(in_channels, channels, 3)
    return Stem({"conv1": conv, "bn1": norm, "act1": nn.ReLU(inplace=True)}, channels, 1)


def projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Shortcut: a strided 1x1 convolution (option B of the paper)."""
    return nn.Sequential(*conv_norm(in_channels, channels, 1, stride))


def pooled_projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Shortcut: an average pool, then a 1x1 convolution, so that every position counts ("Bag of Tricks", ResNet-D)."""
    return nn.Sequential(HalvingPool() if stride == 2 else nn.Identity(), *conv_norm(in_channels, channels))


class Bottleneck(nn.Module):
    """1x1 convolution, operator, 1x1 convolution, plus the shortcut: (B, C, H, W) -> (B, channels, H / s, W / s)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        width: int,
        stride: int,
        operator: Operator,
        shortcut: Projection,
        gate: Gate | None,
        act: Activation,
        drop_path: float,
    ) -> None:
        super().__init__()
        branch = {"conv1": nn.Conv2d(in_channels, width, 1, bias=False), "bn1": nn.BatchNorm2d(width)}
        branch |= {"act1": act(inplace=True), **operator(width, stride)}
        branch |= {"conv3": nn.Conv2d(width, channels, 1, bias=False), "bn3": nn.BatchNorm2d(channels)}
        if gate:
            branch["se"] = gate(channels)
        for name, module in branch.items():
            self.add_module(name, module)
        self.in_order = tuple(branch)
        reshapes = stride != 1 or in_channels != channels
        self.downsample = shortcut(in_channels, channels, stride) if reshapes else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.act3 = act(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = chain(self, self.in_order, x)
        return self.act3(self.drop_path(self.downsample(x), residual, reuse=True))  # bn3 does not need its output


class ResNet(nn.Module):
    """Stem, stages of bottlenecks, global average pool, classifier: images (B, C, H, W) -> logits (B, num_classes).

    `stem` is called with `in_channels`. `blocks` lists one operator per block for each stage. `width` and `channels`,
    inside and outside the blocks, are the first stage's and double from stage to stage (table 1); the first block of a
    stage takes its stride. `drop_path` is the probability in the last block; it grows linearly with depth (Huang et
    al., "Deep Networks with Stochastic Depth", 2016, equation 4). `dropout` applies to the pooled features.
    `extra` maps a stage, counted from 1, to a module of its channels, (B, C, H, W) -> the same, before its last block.
    `zero_last_norm` starts every block as its shortcut (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section
    5.1).
    """

    def __init__(
        self,
        stem: Callable[[int], Stem],
        blocks: Sequence[Sequence[Operator]],
        *,
        width: int = 64,
        channels: int = 256,
        strides: Sequence[int] = (1, 2, 2, 2),
        shortcut: Projection = projection,
        gate: Gate | None = None,
        act: Activation = nn.ReLU,
        extra: Mapping[int, Callable[[int], nn.Module]] | None = None,
        zero_last_norm: bool = True,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        first = stem(in_channels)
        for name, module in first.modules.items():
            self.add_module(name, module)
        self.in_order = tuple(first.modules)
        self.stages = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        self.stage_channels = tuple(channels * 2**level for level in range(len(blocks)))
        self.stage_strides = tuple(accumulate([first.stride, *strides], mul))[1:]
        before, rates = first.channels, growing(drop_path, sum(map(len, blocks)))
        block = partial(Bottleneck, shortcut=shortcut, gate=gate, act=act)
        for level, (name, after) in enumerate(zip(self.stages, self.stage_channels, strict=True)):
            stage = Stage()
            for operator, rate in zip(blocks[level], rates, strict=False):
                inside, stride = width * 2**level, 1 if len(stage) else strides[level]
                stage.append(block(before, after, width=inside, stride=stride, operator=operator, drop_path=rate))
                before = after
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(before, num_classes)
        initialize(self, zero_last_norm=zero_last_norm)
        for level, make in (extra or {}).items():
            stage = getattr(self, f"layer{level}")
            stage.insert(len(stage) - 1, make(self.stage_channels[level - 1]))

    def forward_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps of all stages, (B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])."""
        x, maps = chain(self, self.in_order, images), []
        for name in self.stages:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.avgpool(self.forward_stages(images)[-1]).flatten(1)
        return self.fc(self.dropout(features))

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifier by a new one."""
        self.fc = new_head(self.fc, num_classes)


def initialize(model: nn.Module, *, zero_last_norm: bool) -> None:
    """Convolutions: normal with variance 2 / fan-out (He et al., "Delving Deep into Rectifiers", 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Bottleneck) and zero_last_norm:
            nn.init.zeros_(module.get_submodule("bn3").get_parameter("weight"))
