"""The residual skeleton of every convolutional family here.

He et al., "Deep Residual Learning for Image Recognition" (2015). A bottleneck is a 1x1 convolution, a spatial
operator and a 1x1 convolution, added to its shortcut (section 4.1, figure 5). The families differ in the operator, so
a stage lists one operator per block. The names of the modules, and so the keys of a state dict, are the published
ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from cotnet.models.checkpointing import recomputed
from cotnet.models.layers import Activation, DropPath, HalvingPool, chain, new_head

# (width, stride) -> the named modules between bn1 and conv3; they reduce the map by the stride.
Operator = Callable[[int, int], dict[str, nn.Module]]
# (in_channels, channels, stride) -> the module on the shortcut, where the shape changes.
Projection = Callable[[int, int, int], nn.Module]
# channels -> the module after bn3.
Gate = Callable[[int], nn.Module]


class Settings(NamedTuple):
    """What every constructor takes: classes, and the probabilities of dropping a residual branch or a feature."""

    num_classes: int
    drop_path: float
    dropout: float


class Stem(NamedTuple):
    """What comes before the stages: named modules, the channels they give and by how much they reduce the map."""

    modules: dict[str, nn.Module]
    channels: int
    stride: int


class Stage(NamedTuple):
    """Blocks of one resolution: `width` channels inside, `channels` outside; the first block has the stride."""

    channels: int
    width: int
    stride: int
    operators: Sequence[Operator]


def stem(in_channels: int, *, act: Activation = nn.ReLU) -> Stem:
    """7x7 convolution of stride 2, then a max pool of stride 2 (table 1)."""
    conv = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return Stem({"conv1": conv, "bn1": nn.BatchNorm2d(64), "act1": act(inplace=True), "maxpool": pool}, 64, 4)


def deep_stem(in_channels: int, width: int, *, pool: bool = True) -> Stem:
    """Three 3x3 convolutions in place of the 7x7 (He et al., "Bag of Tricks", 2019, figure 2, ResNet-C)."""
    convs = nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
    )
    modules = {"conv1": convs, "bn1": nn.BatchNorm2d(2 * width), "act1": nn.ReLU(inplace=True)}
    if pool:
        modules["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return Stem(modules, 2 * width, 4 if pool else 2)


def small_stem(in_channels: int, channels: int) -> Stem:
    """One 3x3 convolution of stride 1, for images of 28 to 64 pixels."""
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return Stem({"conv1": conv, "bn1": nn.BatchNorm2d(channels), "act1": nn.ReLU(inplace=True)}, channels, 1)


def projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Shortcut by a strided 1x1 convolution (the paper's option B)."""
    conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


def pooled_projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Shortcut that averages before it projects, so that no position is skipped ("Bag of Tricks", ResNet-D)."""
    pool = HalvingPool() if stride == 2 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))


def pyramid(
    blocks: Sequence[Sequence[Operator]], *, width: int = 64, channels: int = 256, strides: Sequence[int] = (1, 2, 2, 2)
) -> list[Stage]:
    """Stages whose width and channels double from one to the next (table 1)."""
    return [
        Stage(channels * 2**level, width * 2**level, stride, operators)
        for level, (operators, stride) in enumerate(zip(blocks, strides, strict=True))
    ]


class Bottleneck(nn.Module):
    """1x1 convolution, operator, 1x1 convolution, plus the shortcut; the operator reduces the map by the stride."""

    def __init__(
        self,
        in_channels: int,
        stage: Stage,
        index: int,
        *,
        shortcut: Projection,
        gate: Gate | None,
        act: Activation,
        drop_path: float,
    ) -> None:
        super().__init__()
        channels, width, stride = stage.channels, stage.width, stage.stride if index == 0 else 1
        branch = {
            "conv1": nn.Conv2d(in_channels, width, 1, bias=False),
            "bn1": nn.BatchNorm2d(width),
            "act1": act(inplace=True),
            **stage.operators[index](width, stride),
            "conv3": nn.Conv2d(width, channels, 1, bias=False),
            "bn3": nn.BatchNorm2d(channels),
            **({"se": gate(channels)} if gate else {}),
        }
        for name, module in branch.items():
            self.add_module(name, module)
        self.branch = tuple(branch)
        reshapes = stride != 1 or in_channels != channels
        self.downsample = shortcut(in_channels, channels, stride) if reshapes else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.act3 = act(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.drop_path(chain(self, self.branch, x))
        y: torch.Tensor = self.act3(residual.add_(self.downsample(x)))  # nothing before keeps its output
        return y


class ResNet(nn.Module):
    """Stem, stages of bottlenecks, global average pool, classifier: images (B, C, H, W) -> logits (B, num_classes).

    `drop_path` is the probability of dropping the last block's residual branch; it grows linearly with depth (Huang
    et al., "Deep Networks with Stochastic Depth", 2016, equation 4). `dropout` is applied to the pooled features.
    `zero_last_norm` starts every block as its shortcut (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section
    5.1).
    """

    def __init__(
        self,
        stem: Stem,
        stages: Sequence[Stage],
        settings: Settings,
        *,
        shortcut: Projection = projection,
        gate: Gate | None = None,
        act: Activation = nn.ReLU,
        zero_last_norm: bool = True,
    ) -> None:
        super().__init__()
        for name, module in stem.modules.items():
            self.add_module(name, module)
        self.stem = tuple(stem.modules)
        self.stages = tuple(f"layer{number}" for number in range(1, len(stages) + 1))
        self.checkpointing: tuple[int, ...] = ()
        self.stage_channels = tuple(stage.channels for stage in stages)
        self.stage_strides = _running_product(stem.stride, [stage.stride for stage in stages])
        in_channels, done, total = stem.channels, 0, sum(len(stage.operators) for stage in stages)
        for name, stage in zip(self.stages, stages, strict=True):
            blocks = []
            for index in range(len(stage.operators)):
                rate = settings.drop_path * done / max(total - 1, 1)
                block = Bottleneck(in_channels, stage, index, shortcut=shortcut, gate=gate, act=act, drop_path=rate)
                blocks.append(block)
                in_channels, done = stage.channels, done + 1
            self.add_module(name, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(settings.dropout)
        self.fc = nn.Linear(in_channels, settings.num_classes)
        initialize(self, zero_last_norm=zero_last_norm)

    def forward_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps of all stages, (B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])."""
        x, maps = chain(self, self.stem, images), []
        for number, name in enumerate(self.stages, start=1):
            for block in getattr(self, name):
                x = recomputed(block, x, of=block) if number in self.checkpointing else block(x)
            maps.append(x)
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.avgpool(self.forward_stages(images)[-1]).flatten(1)
        logits: torch.Tensor = self.fc(self.dropout(features))
        return logits

    def reset_head(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one."""
        self.fc = new_head(self.fc, num_classes)


def initialize(model: nn.Module, *, zero_last_norm: bool) -> None:
    """He et al., "Delving Deep into Rectifiers" (2015): normal, variance 2 / fan-out, for every convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Bottleneck) and zero_last_norm:
            nn.init.zeros_(module.get_submodule("bn3").get_parameter("weight"))


def _running_product(start: int, factors: Sequence[int]) -> tuple[int, ...]:
    products = [start]
    for factor in factors:
        products.append(products[-1] * factor)
    return tuple(products[1:])
