"""Semantic FPN: the class of each pixel from a feature pyramid.

Kirillov et al., "Panoptic Feature Pyramid Networks" (2019), section 3.1, as PVT trains it in mmsegmentation.
"""

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from cotnet.dense.pyramid import Batching, Pyramid, Targets, norm_layer
from cotnet.dense.settings import SegmentationTask
from cotnet.engine.determinism import forward_only
from data.sets.image_set import IGNORED


def build_segmenter(
    backbone: nn.Module, task: SegmentationTask, *, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """A Semantic FPN; takes over the backbone. The pyramid has no norm, as in mmsegmentation; the head has `task.norm`.

    In training, `model(images, targets)` -> {name: loss}, with `classes` (H, W) from 0, 255 where a pixel does not
    count; in evaluation, `model(images)` -> for each image `logits` (num_classes, H, W). Images are uint8 (3, H, W),
    `mean` and `std` per channel of images in [0, 1]. Raises InputError if the backbone has no feature pyramid.
    """
    pyramid = Pyramid(backbone, freeze=task.freeze, channels=task.channels, norm="none")
    return SemanticFPN(pyramid, task, num_classes=num_classes, batching=Batching(mean, std))


def class_map(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The class (H, W) int64 of each pixel of an image of this size, from its logits (num_classes, h, w)."""
    with forward_only():  # some GiB for a large image
        return F.interpolate(logits[None].float(), tuple(size), mode="bilinear")[0].argmax(0)


class SemanticFPN(nn.Module):
    """Each level of the pyramid is brought to the finest one's size by convolutions and upsampling; their sum decides.

    See `build_segmenter` for what goes in and comes out.
    """

    def __init__(self, backbone: Pyramid, task: SegmentationTask, *, num_classes: int, batching: Batching) -> None:
        super().__init__()
        self.backbone, self.transform = backbone, batching
        self.levels = nn.ModuleList()
        for stride in backbone.strides:
            halvings, channels = int(math.log2(stride // backbone.strides[0])), backbone.out_channels
            convs = [
                Conv2dNormActivation(width, task.head_channels, 3, norm_layer=norm_layer(task.norm))
                for width in [channels, *[task.head_channels] * (max(halvings, 1) - 1)]
            ]
            up = [nn.Upsample(scale_factor=2, mode="bilinear") if halvings else nn.Identity() for _ in convs]
            self.levels.append(nn.Sequential(*chain(*zip(convs, up, strict=True))))
        self.dropout = nn.Dropout2d(task.dropout)
        self.classifier = nn.Conv2d(task.head_channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.constant_(self.classifier.get_parameter("bias"), 0)

    def forward(
        self, images: list[torch.Tensor], targets: Targets | None = None
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        batch, _ = self.transform(images)
        maps = list(self.backbone(batch.tensors).values())
        features = self.levels[0](maps[0])
        for level, x in zip(self.levels[1:], maps[1:], strict=True):
            features = features + level(x)
        logits = self.classifier(self.dropout(features)).float()
        logits = F.interpolate(logits, size=batch.tensors.shape[2:], mode="bilinear")
        if not self.training:
            return [{"logits": x[:, :h, :w]} for x, (h, w) in zip(logits, batch.image_sizes, strict=True)]
        assert targets is not None
        classes = torch.full_like(logits[:, 0], IGNORED, dtype=torch.int64)
        for target, padded in zip(targets, classes, strict=True):
            height, width = target["classes"].shape
            padded[:height, :width] = target["classes"]
        # Not reduction="sum", which is in no fixed order on a GPU.
        loss = F.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="none").sum()
        return {"loss_classes": loss / (classes != IGNORED).sum().clamp(min=1)}
