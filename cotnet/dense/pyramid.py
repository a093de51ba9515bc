"""A backbone and a feature pyramid, and batches of images of different sizes: what every dense head stands on.

Lin et al., "Feature Pyramid Networks for Object Detection" (2017), section 3.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from cotnet.dense.bodies import headless, stage_maps, stage_names
from cotnet.dense.settings import Norm
from cotnet.models.freezing import PartlyFrozen

MULTIPLE = 32  # of height and width of a batch, in pixels

Targets = list[dict[str, torch.Tensor]]


def norm_layer(norm: Norm) -> Callable[..., nn.Module] | None:
    """The layer after a convolution of necks and heads, called with its channels."""
    return nn.BatchNorm2d if norm == "bn" else None


class CoarseLevels(LastLevelP6P7):
    """RetinaNet's P6 and P7: convolutions of stride 2 on the backbone's last map, without a ReLU between them.

    Lin et al., "Focal Loss for Dense Object Detection" (2017), has the ReLU; PVT's detectors, and mmdetection's
    RetinaNet, do not.
    """

    def forward(
        self, p: list[torch.Tensor], c: list[torch.Tensor], names: list[str]
    ) -> tuple[list[torch.Tensor], list[str]]:
        p6 = self.p6(c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


class Pyramid(PartlyFrozen):
    """Normalised images (B, 3, H, W) -> {name: (B, channels, H / stride, W / stride)}, the finest level first.

    Levels are the backbone's stages (`skip_finest`: without the first, if there are four) and by `extra` one more
    ("pool") or two more ("convs"); `strides` lists all of them. `freeze` counts the stem and stages whose parameters,
    and BatchNorm statistics, stay as they are.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        freeze: int,
        channels: int,
        norm: Norm,
        skip_finest: bool = False,
        extra: Literal["pool", "convs"] | None = None,
    ) -> None:
        super().__init__()
        self.body, self.out_channels = headless(backbone), channels
        self.first = int(skip_finest and len(self.body.stage_channels) > 3)
        widths, strides = self.body.stage_channels[self.first :], self.body.stage_strides[self.first :]
        block = CoarseLevels(widths[-1], channels) if extra == "convs" else LastLevelMaxPool() if extra else None
        self.fpn = FeaturePyramidNetwork(list(widths), channels, block, norm_layer(norm))
        more = {"pool": 1, "convs": 2, None: 0}[extra]
        self.strides = (*strides, *(strides[-1] * 2**step for step in range(1, more + 1)))
        frozen = stage_names(self.body)[:freeze] if freeze else []
        self.freeze_parts(f"body.{name}" for names in frozen for name in names)
        self.train()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = stage_maps(self.body, images)[self.first :]
        return self.fpn({str(level): x for level, x in enumerate(maps)})


class Batching(nn.Module):
    """uint8 images of different sizes -> one float batch on their device, normalised, padded by 0 to a multiple of 32.

    Stands where torchvision's detectors have GeneralizedRCNNTransform, which would resize, too. `mean` and `std` are
    per channel, of images in [0, 1]. Has no state-dict keys.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: list[torch.Tensor], targets: Targets | None = None) -> tuple[ImageList, Targets | None]:
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (math.ceil(max(sides) / MULTIPLE) * MULTIPLE for sides in zip(*sizes, strict=True))
        batch = self.mean.new_zeros(len(images), 3, height, width)
        for image, padded in zip(images, batch, strict=True):
            part = padded[:, : image.shape[1], : image.shape[2]]
            part.copy_(image).sub_(self.mean).div_(self.std)  # in place: a third of the time on a CPU
        return ImageList(batch, sizes), targets

    def postprocess(self, results: list[dict[str, torch.Tensor]], *_: Any) -> list[dict[str, torch.Tensor]]:
        """What torchvision calls to map results back to the images as given; ours are in their pixels already."""
        return results
