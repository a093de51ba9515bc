"""The second stage of Faster, Mask and Cascade R-CNN: classes, boxes and masks of proposals.

Girshick, "Fast R-CNN" (2015); He et al., "Mask R-CNN" (2017); Cai and Vasconcelos, "Cascade R-CNN" (2018), section 4.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image

from cotnet.dense.pyramid import Targets
from cotnet.ops.roi_align import roi_align

IOUS = (0.5, 0.6, 0.7)  # of a positive box, for each stage
WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))  # of x, y, width and height

Boxes = list[torch.Tensor]  # (n, 4) for each image
Sizes = list[tuple[int, int]]  # height and width of each image


class Samples(NamedTuple):
    """What a stage learns from, for each image: boxes, their objects, labels (0: background) and box deltas."""

    rois: Boxes
    matched: list[torch.Tensor]
    labels: list[torch.Tensor]
    goals: list[torch.Tensor]


class RegionHeads(RoIHeads):
    """torchvision's RoIHeads with one stage, or with a cascade: then `box_head` and `box_predictor` are ModuleLists.

    A stage starts from the boxes of the one before and has its own head, IoU and weights. In a cascade the losses of
    all stages count alike, and each passes 1 / stages of its gradient on to the pyramid, as in detectron2. Scores are
    means over the stages, boxes the last stage's. `beta`: L1 loss of boxes if 0, else smooth-L1. Masks are (n, 28, 28)
    probabilities.
    """

    def __init__(
        self, pool: nn.Module, box_head: nn.Module, box_predictor: nn.Module, *, beta: float, rois: int, **named: Any
    ) -> None:
        super().__init__(pool, box_head, box_predictor, 0.5, 0.5, rois, 0.25, None, **named)
        self.beta = beta
        self.heads = len(box_head) if isinstance(box_head, nn.ModuleList) else 1

    def enter(self, stage: int) -> None:
        """Take the stage's weights and IoU for torchvision's methods."""
        self.box_coder = BoxCoder(WEIGHTS[stage])
        self.proposal_matcher = Matcher(IOUS[stage], IOUS[stage])

    def forward(
        self,
        features: dict[str, torch.Tensor],
        proposals: Boxes,
        image_shapes: Sizes,
        targets: Targets | None = None,
    ) -> tuple[Targets, dict[str, torch.Tensor]]:
        features = {name: x.float() for name, x in features.items()}  # once, not in each pool
        if not self.training:
            return self.detect(features, proposals, image_shapes), {}
        assert targets is not None
        losses: dict[str, torch.Tensor] = {}
        rois, samples = proposals, []
        for stage in range(self.heads):
            samples.append(self.sample(stage, rois, targets))
            logits, deltas = self.predict(stage, self.box_roi_pool(features, samples[-1].rois, image_shapes))
            losses |= self.box_losses(stage, logits, deltas, samples[-1])
            if stage + 1 < self.heads:
                rois = self.refine(deltas, samples[-1].rois, image_shapes)
        if self.has_mask():
            losses["loss_mask"] = self.mask_loss(features, samples[0], image_shapes, targets)
        return [], losses

    def sample(self, stage: int, rois: Boxes, targets: Targets) -> Samples:
        """The boxes that a stage learns from: the first takes `task.rois` of an image's, the others take all."""
        self.enter(stage)
        if stage == 0:
            return Samples(*self.select_training_samples(rois, targets))
        truth = [target["boxes"] for target in targets]
        matched, labels = self.assign_targets_to_proposals(rois, truth, [target["labels"] for target in targets])
        objects = [
            boxes[index] if len(boxes) else torch.zeros_like(roi)
            for boxes, index, roi in zip(truth, matched, rois, strict=True)
        ]
        return Samples(rois, matched, labels, self.box_coder.encode(objects, rois))

    def predict(self, stage: int, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, classes + 1), background first, and box deltas (n, 4) or (n, 4 * (classes + 1))."""
        head, predictor = self.box_head, self.box_predictor
        if isinstance(head, nn.ModuleList):
            head, predictor = head[stage], predictor[stage]
            if pooled.requires_grad:
                pooled.register_hook(partial(torch.mul, 1 / self.heads))
        logits, deltas = predictor(head(pooled))
        return logits.float(), deltas.float()

    def refine(self, deltas: torch.Tensor, rois: Boxes, image_shapes: Sizes) -> Boxes:
        """The boxes that this stage gives to the next one."""
        boxes = self.box_coder.decode(deltas.detach(), rois).reshape(-1, 4).split([len(roi) for roi in rois])
        return [clip_boxes_to_image(box, shape) for box, shape in zip(boxes, image_shapes, strict=True)]

    def box_losses(
        self, stage: int, logits: torch.Tensor, deltas: torch.Tensor, samples: Samples
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy and box loss of a stage, both per sampled box."""
        labels, goals = torch.cat(samples.labels), torch.cat(samples.goals)
        deltas = deltas.unflatten(1, (-1, 4))  # (n, 1 or classes + 1, 4)
        positive, count = torch.where(labels > 0)[0], max(len(labels), 1)
        column = labels[positive] if deltas.shape[1] > 1 else torch.zeros_like(positive)
        boxes = F.smooth_l1_loss(deltas[positive, column], goals[positive], beta=self.beta, reduction="sum")
        classes = F.cross_entropy(logits, labels, reduction="sum")
        suffix = f"_stage{stage + 1}" if isinstance(self.box_head, nn.ModuleList) else ""
        return {f"loss_classifier{suffix}": classes / count, f"loss_box_reg{suffix}": boxes / count}

    def detect(self, features: dict[str, torch.Tensor], rois: Boxes, image_shapes: Sizes) -> Targets:
        """Boxes, labels, scores, and masks of each image, the best first."""
        probabilities = []
        for stage in range(self.heads):
            self.enter(stage)
            logits, deltas = self.predict(stage, self.box_roi_pool(features, rois, image_shapes))
            probabilities.append(logits.softmax(1))
            if stage + 1 < self.heads:
                rois = self.refine(deltas, rois, image_shapes)
        scores = torch.stack(probabilities).mean(0)
        if deltas.shape[1] == 4:
            deltas = deltas.repeat(1, scores.shape[1])
        columns = self.postprocess_detections(scores.log(), deltas, rois, image_shapes)
        names = ("boxes", "scores", "labels")
        found = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        if self.has_mask():
            boxes, labels = columns[0], torch.cat(columns[2])
            masks = scores.new_zeros(0, 28, 28)
            if len(labels):
                logits = self.mask_logits(features, boxes, image_shapes)
                masks = logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()
            for result, mask in zip(found, masks.split([len(box) for box in boxes]), strict=True):
                result["masks"] = mask
        return found

    def mask_logits(self, features: dict[str, torch.Tensor], boxes: Boxes, image_shapes: Sizes) -> torch.Tensor:
        """(n, classes + 1, 28, 28), in float32."""
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        return self.mask_predictor(self.mask_head(pooled)).float()

    def mask_loss(
        self, features: dict[str, torch.Tensor], samples: Samples, image_shapes: Sizes, targets: Targets
    ) -> torch.Tensor:
        """Binary cross-entropy of each positive box's mask, cut out of its object's and resized."""
        rois, matched, labels, _ = samples
        positive = [torch.where(label > 0)[0] for label in labels]
        boxes = [roi[index] for roi, index in zip(rois, positive, strict=True)]
        if not any(map(len, boxes)):  # BatchNorm needs a box, and each parameter a gradient
            height, width = image_shapes[0]
            boxes[0] = rois[0].new_tensor([[0, 0, width, height]])
            return self.mask_logits(features, boxes, image_shapes).sum() * 0
        logits = self.mask_logits(features, boxes, image_shapes)
        goals = []
        for target, box, index, match in zip(targets, boxes, positive, matched, strict=True):
            if len(box):
                objects = torch.cat([match[index, None].to(box), box], 1)
                cut = roi_align(target["masks"][:, None].to(box), objects, side=logits.shape[2])
                goals.append(cut[:, 0] >= 0.5)
        classes = torch.cat([label[index] for label, index in zip(labels, positive, strict=True)])
        chosen = logits[torch.arange(len(classes), device=classes.device), classes]
        return F.binary_cross_entropy_with_logits(chosen, torch.cat(goals).to(chosen))
