"""Every operator of the papers' tables by name, and a small network of any of them.

The operators replace the 3x3 convolution of a bottleneck. In one skeleton, with the same recipe and the number of
parameters equal, they can be compared: docs/fashion_mnist.md.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Final, Literal, Unpack

from torch import nn

from cotnet.models.botnet import attention
from cotnet.models.cotnet import cot, coxt
from cotnet.models.global_attention import NonLocalBlock, augmented, lambdas
from cotnet.models.layers import SqueezeExcite
from cotnet.models.local_attention import halo, local_relation, stand_alone
from cotnet.models.resnet import (
    SMALL_DEPTHS,
    SMALL_STRIDES,
    OperatorStages,
    convolution,
    selective_kernel,
    small_network,
    split_attention,
)
from cotnet.models.resnet_base import ImageSize, Operator, ResNet, ResNetConfig, SmallWidth
from cotnet.models.spec import constructor
from cotnet.settings import Setting

__all__ = ["operator_small"]

OperatorName = Literal[
    "convolution", "grouped", "squeeze_excite", "split_attention", "selective_kernel", "cot", "coxt",
    "stand_alone", "local_relation", "halo", "attention", "augmented", "lambda", "non_local",
]  # fmt: skip
HEADS: Final = 2

# Settings for maps of 4 to 32 positions a side: fewer heads and groups, smaller blocks and windows than published.
OPERATORS: Final[dict[str, Callable[..., dict[str, nn.Module]]]] = {
    "convolution": convolution,
    "grouped": partial(convolution, groups=4),
    "squeeze_excite": convolution,
    "split_attention": split_attention,
    "selective_kernel": partial(selective_kernel, groups=4),
    "cot": cot,
    "coxt": coxt,
    "stand_alone": partial(stand_alone, heads=HEADS, kernel_size=5),
    "local_relation": partial(local_relation, kernel_size=5),
    "halo": partial(halo, heads=HEADS, block=4, halo=2),
    "attention": partial(attention, heads=HEADS, act=nn.ReLU),
    "augmented": partial(augmented, heads=HEADS),
    "lambda": partial(lambdas, heads=HEADS, window=7),
    "non_local": convolution,
}
SIDED: Final = ("attention", "augmented")  # their tables of positions need the nominal side of the map


@constructor
def operator_small(
    *,
    operator: Annotated[
        OperatorName | Operator, Setting("what stands in place of the 3x3 convolutions; a plug-in's by `_target_`")
    ] = "cot",
    stages: OperatorStages = (1, 2, 3, 4),
    width: SmallWidth = 16,
    channels: Annotated[int, Setting("channels between the blocks of the first stage", least=1)] = 64,
    image_size: ImageSize = 32,
    **common: Unpack[ResNetConfig],
) -> ResNet:
    """Six bottlenecks for images of 28 to 64 pixels, as cotnet_small and resnet_small, with any operator.

    `squeeze_excite` adds a gate to each block; `non_local` adds a non-local block to the third stage. Raises ValueError
    if the operator's heads or groups do not divide `width`.
    """
    make, blocks, side = operator if callable(operator) else OPERATORS[operator], [], image_size
    for level, (depth, stride) in enumerate(zip(SMALL_DEPTHS, SMALL_STRIDES, strict=True), start=1):
        before, side = side, -(-side // stride)
        sides = [before if operator == "attention" else side] + [side] * (depth - 1)  # BoT attends before its pool
        sized = [partial(make, side=size) for size in sides] if operator in SIDED else [make] * depth
        blocks.append(sized if level in stages else [convolution] * depth)
    gate = SqueezeExcite if operator == "squeeze_excite" else None
    extra = {3: NonLocalBlock} if operator == "non_local" else None
    return small_network(blocks, width, channels=channels, gate=gate, extra=extra, **common)
