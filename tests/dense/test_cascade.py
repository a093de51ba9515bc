import copy

import pytest
import torch
from drawn import CLASSES, batch, detector, slim
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads

from cotnet import models
from cotnet.dense.cascade import IOUS, WEIGHTS


def heads_and_inputs(head="faster_rcnn", **changes):
    torch.manual_seed(0)
    model = slim(detector(models.cotnet_small(width=8), head, **changes))
    images, targets = batch([1, 3, 7])
    with torch.no_grad():
        listed, _ = model.transform(images)
        features = model.backbone(listed.tensors)
        proposals, _ = model.rpn(listed, features, targets)
    return model.roi_heads, (features, proposals, listed.image_sizes, targets)


def run(heads, features, proposals, sizes, targets):
    torch.manual_seed(1)
    found, losses = heads(features, list(proposals), sizes, targets)
    return losses if heads.training else found


def test_one_stage_is_torchvisions():
    """With smooth-L1 and the same pooling: the same losses and detections from the same weights and random numbers."""
    heads, inputs = heads_and_inputs(box_loss="smooth_l1")
    theirs = RoIHeads(heads.box_roi_pool, heads.box_head, heads.box_predictor, 0.5, 0.5, 32, 0.25, None, 0.05, 0.5, 20)
    nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.3)
    mine, other = run(heads, *inputs), run(theirs, *inputs)
    assert set(mine) == set(other)
    assert mine["loss_box_reg"] > 0
    for name, loss in mine.items():
        torch.testing.assert_close(loss, other[name], rtol=1e-6, atol=0)
    with torch.no_grad():
        mine, other = run(heads.eval(), *inputs[:3], None), run(theirs.eval(), *inputs[:3], None)
    for a, b in zip(mine, other, strict=True):
        assert torch.equal(a["labels"], b["labels"])
        torch.testing.assert_close(a["boxes"], b["boxes"])
        torch.testing.assert_close(a["scores"], b["scores"])
    assert sum(len(a["labels"]) for a in mine) > 10


def test_a_cascade_of_one_stage_is_faster_rcnn():
    heads, inputs = heads_and_inputs()
    cascade = copy.deepcopy(heads)
    cascade.box_head, cascade.box_predictor = nn.ModuleList([heads.box_head]), nn.ModuleList([heads.box_predictor])
    mine, one = run(cascade, *inputs), run(heads, *inputs)
    assert torch.equal(mine["loss_classifier_stage1"], one["loss_classifier"])
    assert torch.equal(mine["loss_box_reg_stage1"], one["loss_box_reg"])


def test_each_stage_starts_from_the_boxes_before_it():
    """With deltas of zero the boxes stay, so only the IoU of a positive and the weights of the boxes differ."""
    assert (IOUS, WEIGHTS[2]) == ((0.5, 0.6, 0.7), (30.0, 30.0, 15.0, 15.0))
    heads, inputs = heads_and_inputs("cascade_rcnn")
    for near, target in zip(inputs[1], inputs[3], strict=True):
        for row, box in zip(range(0, 90, 9), target["boxes"].repeat(5, 1), strict=False):
            near[row] = (box + torch.tensor([row / 9 - 3, 0, 1, row / 12])).clamp(0, 64)
    for predictor in heads.box_predictor:
        nn.init.zeros_(predictor.bbox_pred.weight)
        assert predictor.bbox_pred.out_features == 4
    seen = []
    heads.box_roi_pool.register_forward_pre_hook(lambda _, given: seen.append(torch.cat(given[1])))
    losses = run(heads, *inputs)
    assert len(seen) == 3
    torch.testing.assert_close(seen[1], seen[0], atol=1e-4, rtol=0)
    truth, rois = inputs[3], seen[0].split([32, 32, 32])
    for stage, iou in enumerate(IOUS):
        expected = 0.0
        for target, boxes in zip(truth, rois, strict=True):
            for box in boxes:
                best = max(
                    ((overlap(box, other), other) for other in target["boxes"]), key=lambda x: x[0], default=(0, box)
                )
                if best[0] >= iou:
                    expected += sum(abs(w * d) for w, d in zip(WEIGHTS[stage], deltas(box, best[1]), strict=True))
        assert expected > 0
        assert losses[f"loss_box_reg_stage{stage + 1}"].item() == pytest.approx(
            float(expected) / len(seen[0]), rel=1e-4
        )


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = float(max(width, 0) * max(height, 0))
    return common / float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def deltas(box, goal):
    size, wanted = box[2:] - box[:2], goal[2:] - goal[:2]
    centre = ((goal[:2] + goal[2:]) - (box[:2] + box[2:])) / 2 / size
    return [*centre.tolist(), *(wanted / size).log().tolist()]


def test_scores_are_means_over_the_stages():
    heads, (features, proposals, sizes, _) = heads_and_inputs("cascade_rcnn")
    logits = torch.randn(3, CLASSES + 1)
    for predictor, row in zip(heads.box_predictor, logits, strict=True):
        nn.init.zeros_(predictor.cls_score.weight)
        predictor.cls_score.bias.data = row
    with torch.no_grad():
        found = run(heads.eval(), features, proposals, sizes, None)
    mean = logits.softmax(1).mean(0)
    for result in found:
        torch.testing.assert_close(result["scores"], mean[result["labels"]])


def test_a_stage_passes_a_third_of_its_gradient_to_the_pyramid():
    heads, (features, proposals, sizes, targets) = heads_and_inputs("cascade_rcnn")
    grads = []
    for loss in ("loss_classifier_stage1", None):
        leaves = {name: x.clone().requires_grad_() for name, x in features.items()}
        if loss:
            run(heads, leaves, proposals, sizes, targets)[loss].backward()
        else:
            single = copy.deepcopy(heads)
            single.box_head, single.box_predictor, single.heads = heads.box_head[0], heads.box_predictor[0], 1
            run(single, leaves, proposals, sizes, targets)["loss_classifier"].backward()
        grads.append(leaves["0"].grad)
    torch.testing.assert_close(grads[0] * 3, grads[1])
    assert grads[1].abs().sum() > 0


def test_masks_learn_their_objects():
    """Perfect logits have no loss: the mask of a box is its object's, cut out, and its label's channel."""
    heads, inputs = heads_and_inputs("mask_rcnn")
    features, proposals, sizes, targets = inputs
    targets = [target | {"masks": torch.zeros_like(target["masks"])} for target in targets]
    for target in targets:
        for mask, box in zip(target["masks"], target["boxes"].long(), strict=True):
            mask[:, : (box[0] + box[2]) // 2] = 1  # the left half of the image up to the box's middle
    boxes = [target["boxes"] for target in targets]
    logits = torch.full((1, CLASSES + 1, 28, 28), -20.0)
    logits[..., :14] = 20.0
    heads.mask_logits = lambda _, found, __: logits.expand(sum(map(len, found)), -1, -1, -1)
    heads.select_training_samples = lambda *_: (
        boxes,
        [torch.arange(len(b)) for b in boxes],
        [t["labels"] for t in targets],
        [torch.zeros_like(b) for b in boxes],
    )
    loss = run(heads, features, proposals, sizes, targets)["loss_mask"]
    columns = 28 * loss.item() / 20  # each wrong column adds its share of 20
    assert columns < 1


def test_no_detection_gives_no_mask():
    heads, (features, proposals, sizes, _) = heads_and_inputs("cascade_mask_rcnn")
    heads.eval().score_thresh = 1.1
    with torch.no_grad():
        found = run(heads, features, proposals, sizes, None)
    assert [x["masks"].shape for x in found] == [(0, 28, 28)] * 3
