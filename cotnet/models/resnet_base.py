"""The residual network that all convolutional families share: stem, stages of bottlenecks, head.

He et al., "Deep Residual Learning for Image Recognition" (2015). A bottleneck is a 1x1 convolution, a spatial
operator and a 1x1 convolution, added to its shortcut (section 4.1, figure 5). The families differ in the operator, so
a stage lists one operator per block. Module names, and so state-dict keys, are the published ones.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, get_args

import torch
from torch import nn

from cotnet.models.checkpointing import Stage
from cotnet.models.layers import Activation, DropPath, HalvingPool, chain, conv_norm, growing
from cotnet.models.timm_protocol import Backbone, classifier
from cotnet.settings import Setting

# (width, stride) -> the named modules between bn1 and conv3; they downsample by the stride. The keyword `dilation` is
# the distance of neighbours in positions; networks with a smaller output_stride need it.
Operator = Callable[..., dict[str, nn.Module]]
# (in_channels, channels, stride) -> the shortcut of a block that changes the shape; `dilation` as for operators.
Projection = Callable[..., nn.Module]
# channels -> a module after bn3.
Gate = Callable[[int], nn.Module]


# Settings that several constructors share.
NumClasses = Annotated[int, Setting("classes that the backbone tells apart", least=1)]
ImageSize = Annotated[int, Setting("nominal height and width of the position tables, in pixels", least=1)]
OutputStride = Literal[8, 16, 32]
SmallWidth = Annotated[int, Setting("channels of the first stage; `cotnet_small`: a multiple of 8", least=1)]


class CommonConfig(TypedDict, total=False):
    """The settings that every constructor takes."""

    num_classes: NumClasses
    in_channels: Annotated[int, Setting("channels of the images", least=1)]
    drop_path: Annotated[float, Setting("probability of skipping the last block; grows with depth", least=0, most=1)]
    dropout: Annotated[float, Setting("probability of zeroing a feature before the classifier", least=0, most=1)]


class ResNetConfig(CommonConfig, total=False):
    """The settings that every constructor of a ResNet takes."""

    output_stride: Annotated[
        OutputStride, Setting("largest stride of a stage; stages beyond it keep their resolution and dilate")
    ]


class Stem(NamedTuple):
    """The named modules before the stages, a pool as `maxpool`; their output channels and their total stride."""

    modules: dict[str, nn.Module]
    channels: int
    stride: int

    def info(self) -> dict[str, Any]:
        """Channels, stride and module of the map before the pool."""
        *_, last = (name for name in self.modules if name != "maxpool")
        pool = getattr(self.modules.get("maxpool"), "stride", 1)
        return {"num_chs": self.channels, "reduction": self.stride // pool, "module": last}


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


def projection(in_channels: int, channels: int, stride: int, *, dilation: int = 1) -> nn.Module:  # noqa: ARG001
    """Shortcut: a strided 1x1 convolution (option B of the paper)."""
    return nn.Sequential(*conv_norm(in_channels, channels, 1, stride))


def pooled_projection(in_channels: int, channels: int, stride: int, *, dilation: int = 1) -> nn.Module:
    """Shortcut: an average pool, then a 1x1 convolution, so that every position counts ("Bag of Tricks", ResNet-D).

    In a dilated stage the 2x2 pool has stride 1 and a row and a column of zeros at the end, as in timm.
    """
    pool: nn.Module = HalvingPool() if stride == 2 else nn.Identity()
    if stride == 1 and dilation > 1:
        pool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))
    return nn.Sequential(pool, *conv_norm(in_channels, channels))


class StageGrid(NamedTuple):
    """The stride and dilations of a stage: `first_dilation` in its first block, `dilation` in the others.

    `reduction` is the total stride after it.
    """

    stride: int
    first_dilation: int
    dilation: int
    reduction: int


def stage_grids(stem_stride: int, strides: Sequence[int], output_stride: int | None) -> Iterator[StageGrid]:
    """The grids of the stages; those that start at `output_stride` dilate instead of taking their stride.

    A stage's first block sees the map of the stage before, so it has that stage's dilation: Chen et al., "Rethinking
    Atrous Convolution" (2017), section 3.1, as in torchvision and timm. None: no limit. Raises ValueError for an
    `output_stride` other than 8, 16 or 32.
    """
    if output_stride not in (None, *get_args(OutputStride)):
        raise ValueError(f"output_stride={output_stride} is unknown; give 8, 16 or 32")
    reduction, dilation = stem_stride, 1
    for stride in strides:
        before, dilates = dilation, output_stride is not None and reduction >= output_stride
        dilation *= stride if dilates else 1
        reduction *= 1 if dilates else stride
        yield StageGrid(1 if dilates else stride, before, dilation, reduction)


def dilated(make: Callable[..., Any], dilation: int) -> Callable[..., Any]:
    """An operator or a shortcut whose neighbours are `dilation` times as far apart. Raises ValueError if it cannot."""
    if dilation == 1:
        return make
    own = inspect.signature(make).parameters.get("dilation")
    if own is None:
        name = getattr(getattr(make, "func", make), "__name__", "an operator")
        raise ValueError(f"{name} takes no dilation, which output_stride below 32 needs; leave output_stride at 32")
    return partial(make, dilation=own.default * dilation)


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
        named = operator(width, stride)
        if not isinstance(named, Mapping):
            raise ValueError("an operator returns a dictionary, name to module, such as {'conv2': module}")
        branch = {"conv1": nn.Conv2d(in_channels, width, 1, bias=False), "bn1": nn.BatchNorm2d(width)}
        branch |= {"act1": act(inplace=True), **named}
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


class ResNet(Backbone):
    """Stem, stages of bottlenecks, global average pool, classifier: images (B, C, H, W) -> logits (B, num_classes).

    `stem` is called with `in_channels`. `blocks` lists one operator per block for each stage. `width` and `channels`,
    inside and outside the blocks, are the first stage's and double from stage to stage (table 1); the first block of a
    stage takes its stride, unless the stage starts at `output_stride`: see `stage_grids`. `drop_path` is the
    probability in the last block; it grows linearly with depth (Huang et al., "Deep Networks with Stochastic Depth",
    2016, equation 4). `dropout` applies to the pooled features.
    `extra` maps a stage, counted from 1, to a module of its channels, (B, C, H, W) -> the same, before its last block.
    `zero_last_norm` starts every block as its shortcut (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section
    5.1).
    """

    classifier = "fc"

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
        output_stride: int | None = None,
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
        grids = list(stage_grids(first.stride, strides[: len(blocks)], output_stride))
        self.stage_channels = tuple(channels * 2**level for level in range(len(blocks)))
        self.stage_strides = tuple(grid.reduction for grid in grids)
        self.stem_info = first.info()
        before, rates = first.channels, growing(drop_path, sum(map(len, blocks)))
        for level, (name, after, grid) in enumerate(zip(self.stages, self.stage_channels, grids, strict=True)):
            stage, stride, dilation = Stage(), grid.stride, grid.first_dilation
            block = partial(Bottleneck, width=width * 2**level, shortcut=dilated(shortcut, grid.dilation), gate=gate)
            for operator, rate in zip(blocks[level], rates, strict=False):
                made = dilated(operator, dilation)
                stage.append(block(before, after, stride=stride, operator=made, act=act, drop_path=rate))
                before, stride, dilation = after, 1, grid.dilation
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = classifier(before, num_classes)
        self.first_conv = next(name for name, module in self.named_modules() if isinstance(module, nn.Conv2d))
        initialize(self, zero_last_norm=zero_last_norm)
        for level, make in (extra or {}).items():
            stage = getattr(self, f"layer{level}")
            stage.insert(len(stage) - 1, make(self.stage_channels[level - 1]))

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages."""
        return tuple(f"layer{number}" for number in range(1, len(self.stage_channels) + 1))

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of the stem's map, which is before its pool, and of each stage."""
        return [dict(self.stem_info), *super().feature_info]

    def stage_parts(self) -> list[tuple[str, ...]]:
        return [self.in_order, *((name,) for name in self.stages)]

    def forward_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps of all stages, (B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])."""
        return self._after_stem(chain(self, self.in_order, images))

    def forward_features_keeping(self, images: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        end = self.in_order.index(self.stem_info["module"]) + 1
        kept.append(chain(self, self.in_order[:end], images))
        kept += self._after_stem(chain(self, self.in_order[end:], kept[-1]))
        return kept[-1]

    def _after_stem(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for name in self.stages:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002
        features = self.dropout(self.avgpool(features).flatten(1))
        return features if pre_logits else self.fc(features)


def initialize(model: nn.Module, *, zero_last_norm: bool) -> None:
    """Convolutions: normal with variance 2 / fan-out (He et al., "Delving Deep into Rectifiers", 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, Bottleneck) and zero_last_norm:
            nn.init.zeros_(module.get_submodule("bn3").get_parameter("weight"))
