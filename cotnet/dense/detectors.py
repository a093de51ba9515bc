"""RetinaNet, Faster, Mask and Cascade R-CNN on any backbone with stages, made of torchvision's parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou, sigmoid_focal_loss

from cotnet.dense.cascade import IOUS, RegionHeads
from cotnet.dense.pyramid import Batching, Pyramid, Targets, norm_layer
from cotnet.dense.regions import RATIOS, AlignedPool, Anchors, ProposalHead, ProposalNetwork
from cotnet.dense.settings import DetectionTask
from cotnet.errors import InputError

BETA = {"l1": 0.0, "smooth_l1": 1 / 9}  # where smooth-L1 turns quadratic
WIDER = 4  # linear layers of box heads than the pyramid: 1024 and 256 channels in the papers
OCTAVES = tuple(2 ** (third / 3) for third in range(3))  # sizes of RetinaNet's anchors on a level


def build_detector(
    backbone: nn.Module, task: DetectionTask, *, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """A detector of `num_classes` classes, background not counted; takes over the backbone.

    In training, `model(images, targets)` -> {name: loss}; in evaluation, `model(images)` -> for each image `boxes`
    (n, 4) in its pixels, `labels` (n,) from 1, `scores` (n,) descending and, with a mask head, `masks` (n, 28, 28).
    Images are uint8 (3, H, W), `mean` and `std` per channel of images in [0, 1]. Raises InputError if the backbone has
    no feature pyramid or `task.anchor_sizes` does not fit it.
    """
    build = _retinanet if task.head == "retinanet" else _two_stage
    limits: dict[str, Any] = {"score_thresh": task.score_threshold, "nms_thresh": task.nms_threshold}
    model = build(backbone, task, num_classes, limits | {"detections_per_img": task.max_detections})
    model.transform = Batching(mean, std)
    return model


class FloatRetinaNetHead(RetinaNetHead):
    """torchvision's head, whose results are float32."""

    def forward(self, x: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: found.float() for name, found in super().forward(x).items()}


class BatchRetinaNet(RetinaNet):
    """Lin et al., "Focal Loss for Dense Object Detection" (2017): torchvision's, with labels from 1.

    Losses are sums over the batch divided by its positive anchors, as in mmdetection; torchvision divides per image.
    """

    beta = 0.0

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, torch.Tensor], anchors: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Focal loss of the classes and the loss of the boxes."""
        logits, deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]  # (B, A, K), (B, A, 4)
        classes, matches, goals = torch.zeros_like(logits), [], []
        for target, boxes, wanted in zip(targets, anchors, classes, strict=True):
            match = torch.full_like(boxes[:, 0], -1, dtype=torch.int64)
            if len(target["boxes"]):
                match = self.proposal_matcher(box_iou(target["boxes"], boxes))
            positive = torch.where(match >= 0)[0]
            wanted[positive, target["labels"][match[positive]] - 1] = 1
            goals.append(self.box_coder.encode_single(target["boxes"][match[positive]], boxes[positive]))
            matches.append(match)
        matched = torch.stack(matches)
        positive, counted = matched >= 0, matched != self.proposal_matcher.BETWEEN_THRESHOLDS
        count = positive.sum().clamp(min=1)
        focal = sigmoid_focal_loss(logits[counted], classes[counted], reduction="sum")
        boxes = F.smooth_l1_loss(deltas[positive], torch.cat(goals), beta=self.beta, reduction="sum")
        return {"classification": focal / count, "bbox_regression": boxes / count}

    def postprocess_detections(self, *found: Any) -> list[dict[str, torch.Tensor]]:
        """The boxes that are kept, with labels from 1."""
        return [result | {"labels": result["labels"] + 1} for result in super().postprocess_detections(*found)]


def _retinanet(backbone: nn.Module, task: DetectionTask, num_classes: int, limits: dict[str, Any]) -> nn.Module:
    pyramid = _pyramid(backbone, task, extra="convs")
    anchors = Anchors([[size * octave for octave in OCTAVES] for size in task.anchor_sizes], pyramid.strides)
    head = FloatRetinaNetHead(task.channels, len(OCTAVES) * len(RATIOS), num_classes, norm_layer(task.norm))
    model = BatchRetinaNet(pyramid, num_classes, anchor_generator=anchors, head=head, **limits)
    model.beta = BETA[task.box_loss]
    return model


def _two_stage(backbone: nn.Module, task: DetectionTask, num_classes: int, limits: dict[str, Any]) -> nn.Module:
    pyramid, channels, beta = _pyramid(backbone, task, extra="pool"), task.channels, BETA[task.box_loss]
    cascade = task.head.startswith("cascade")
    anchors = Anchors([[size] for size in task.anchor_sizes], pyramid.strides)
    head = ProposalHead(channels, len(RATIOS))
    rpn = ProposalNetwork(anchors, head, keep=2000 if cascade else 1000, beta=beta)
    stages = [
        (_box_head(task), _predictor(WIDER * channels, num_classes, agnostic=cascade))
        for _ in IOUS[: 3 if cascade else 1]
    ]
    box_heads, predictors = (nn.ModuleList(column) if cascade else column[0] for column in zip(*stages, strict=True))
    pool = AlignedPool(pyramid.strides[:-1], 7)
    heads = RegionHeads(pool, box_heads, predictors, beta=beta, rois=task.rois, **limits)
    if task.masks:
        heads.mask_roi_pool = AlignedPool(pyramid.strides[:-1], 14)
        heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, 1, norm_layer(task.norm))
        heads.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)
    return GeneralizedRCNN(pyramid, rpn, heads, None)


def _pyramid(backbone: nn.Module, task: DetectionTask, *, extra: Any) -> Pyramid:
    skip, channels = task.head == "retinanet", task.channels
    pyramid = Pyramid(backbone, freeze=task.freeze, channels=channels, norm=task.norm, skip_finest=skip, extra=extra)
    if len(task.anchor_sizes) != len(pyramid.strides):
        given, need = len(task.anchor_sizes), f"{len(pyramid.strides)} levels (strides {pyramid.strides})"
        raise InputError(f"task.anchor_sizes has {given} sizes, but the pyramid has {need}; give one size per level")
    return pyramid


def _box_head(task: DetectionTask) -> nn.Module:
    if task.box_head == "2fc":
        head = TwoMLPHead(task.channels * 7**2, WIDER * task.channels)
    else:
        head = FastRCNNConvFCHead(
            (task.channels, 7, 7), [task.channels] * 4, [WIDER * task.channels], norm_layer(task.norm)
        )
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return head


def _predictor(width: int, num_classes: int, *, agnostic: bool) -> nn.Module:
    """Classes and background, and one box each or (`agnostic`) one for all; deviations are detectron2's."""
    predictor = FastRCNNPredictor(width, num_classes + 1)
    if agnostic:
        predictor.bbox_pred = nn.Linear(width, 4)
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    return predictor
