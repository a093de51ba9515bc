"""The parts of two-stage detectors in which detectron2 and mmdetection differ from torchvision.

Anchors are not rounded, RoIAlign is aligned and takes as many samples as a bin has pixels, box losses may be L1.
Positions in the image stay in float32 under autocast.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_area

from cotnet.ops.roi_align import roi_align

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors


class Anchors(AnchorGenerator):
    """Anchors of exact size, centred on the corners of a grid per level; `sizes[i]` and `strides[i]` in pixels."""

    def __init__(self, sizes: Sequence[Sequence[float]], strides: Sequence[int]) -> None:
        super().__init__(tuple(sizes), (RATIOS,) * len(sizes))
        self.strides = strides

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """Boxes (ratios * scales, 4) around the origin, the ratio changing slowest."""
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device)[:, None].sqrt()
        sides = torch.as_tensor(scales, dtype=dtype, device=device)[None]
        width, height = (sides / roots).flatten(), (sides * roots).flatten()
        return torch.stack([-width, -height, width, height], 1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [list(x.shape[-2:]) for x in feature_maps]
        return [torch.cat(self.grid_anchors(grids, [(s, s) for s in self.strides]))] * len(image_list.image_sizes)


class AlignedPool(MultiScaleRoIAlign):
    """RoIAlign (He et al., "Mask R-CNN", 2017) with exact alignment: boxes -> (boxes, channels, side, side), float32.

    A box is pooled from one level: Lin et al., "Feature Pyramid Networks" (2017), equation 1, a box of 224 x 224 pixels
    from stride 16. `strides` are those of the levels "0", "1", ...; those beyond are not pooled.
    """

    def __init__(self, strides: Sequence[int], side: int) -> None:
        super().__init__([str(level) for level in range(len(strides))], side, sampling_ratio=-1)
        self.strides = strides

    def forward(
        self,
        x: dict[str, torch.Tensor],
        boxes: list[torch.Tensor],
        image_shapes: object,  # noqa: ARG002
    ) -> torch.Tensor:
        maps = [x[name].float() for name in self.featmap_names]
        rois = torch.cat([F.pad(found.float(), (1, 0), value=image) for image, found in enumerate(boxes)])
        level = torch.floor(4 + torch.log2(box_area(rois[:, 1:]).sqrt() / 224 + 1e-8)) - math.log2(self.strides[0])
        level = level.clamp(0, len(maps) - 1)
        chosen = [torch.where(level == index)[0] for index in range(len(maps))]
        pooled = [
            roi_align(features, rois[rows], side=self.output_size[0], scale=1 / stride)
            for features, stride, rows in zip(maps, self.strides, chosen, strict=True)
        ]
        result = torch.cat(pooled)  # put in order at once: the gradient of a copy by level would be copied by level
        return torch.empty_like(result).index_copy_(0, torch.cat(chosen), result)


class ProposalHead(RPNHead):
    """torchvision's head of the RPN, whose results are float32."""

    def forward(self, x: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        objectness, deltas = super().forward(x)
        return [found.float() for found in objectness], [found.float() for found in deltas]


class ProposalNetwork(RegionProposalNetwork):
    """Ren et al., "Faster R-CNN" (2015), section 3.1: torchvision's, with smooth-L1 below `beta`, or L1 if that is 0.

    `keep` proposals per image are kept in training, 1000 in evaluation.
    """

    def __init__(self, anchors: Anchors, head: nn.Module, *, keep: int, beta: float) -> None:
        before, after = {"training": 2000, "testing": 1000}, {"training": keep, "testing": 1000}
        super().__init__(anchors, head, 0.7, 0.3, 256, 0.5, before, after, 0.7)
        self.beta = beta

    def compute_loss(
        self,
        objectness: torch.Tensor,
        pred_bbox_deltas: torch.Tensor,
        labels: list[torch.Tensor],
        regression_targets: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses of objectness and boxes, each a mean over the anchors sampled from all images."""
        positive, negative = (torch.cat(masks).bool() for masks in self.fg_bg_sampler(labels))
        sampled, goals = torch.where(positive | negative)[0], torch.cat(regression_targets)[positive]
        boxes = F.smooth_l1_loss(pred_bbox_deltas[positive], goals, beta=self.beta, reduction="sum") / len(sampled)
        scores, truth = objectness.flatten()[sampled], torch.cat(labels)[sampled]
        return F.binary_cross_entropy_with_logits(scores, truth), boxes
