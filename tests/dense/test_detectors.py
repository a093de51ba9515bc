import copy

import pytest
import torch
from drawn import CLASSES, HEADS, MEAN, STD, batch, detection, detector, loss_of, slim, train, without_gradient
from torchvision.models import detection as theirs
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from cotnet import models
from cotnet.dense.detectors import build_detector
from cotnet.dense.regions import AlignedPool, Anchors
from cotnet.engine.determinism import set_algorithms
from cotnet.errors import InputError
from cotnet.models.external import torchvision_model

pytestmark = pytest.mark.slow


def tiny(head, **changes):
    torch.manual_seed(0)
    return slim(detector(models.cotnet_small(width=8), head, **changes))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("numbers", [[1, 7], [7, 15]], ids=["one without boxes", "none with boxes"])
def test_losses_are_finite_and_reach_every_parameter(head, numbers):
    model = tiny(head, norm="bn", freeze=1)
    loss = loss_of(model, *batch(numbers))
    loss.backward()
    assert loss.isfinite()
    assert without_gradient(model) == []
    assert all(x.isfinite().all() for x in model.state_dict().values())  # BatchNorm saw no empty batch


@pytest.mark.parametrize("head", HEADS)
def test_detections_have_the_agreed_form(head):
    model = tiny(head, box_head="4conv1fc", score_threshold=0.0).eval()
    images = [batch([1])[0][0][:, :40, :50], batch([2], side=80)[0][0]]
    with torch.no_grad():
        found = model(images)
    for image, result in zip(images, found, strict=True):
        count = len(result["boxes"])
        assert 0 < count <= 20
        assert set(result) == {"boxes", "labels", "scores", *(["masks"] if "mask" in head else [])}
        assert set(result["labels"].tolist()) <= set(range(1, CLASSES + 1))
        assert (result["scores"].diff() <= 0).all()
        assert (result["boxes"] >= 0).all()
        assert (result["boxes"][:, 2:] <= torch.tensor([image.shape[2], image.shape[1]])).all()
        if "mask" in head:
            assert result["masks"].shape == (count, 28, 28)
            assert 0 <= result["masks"].min() <= result["masks"].max() <= 1


@pytest.mark.parametrize("head", HEADS)
def test_bf16(head):
    """Only the networks compute in bf16: boxes, scores and losses are float32 and near those of float32."""
    model = tiny(head)
    images, targets = batch([1, 2])
    exact = loss_of(copy.deepcopy(model), images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, images, targets)
        model.eval()
        found = model(images)
    loss.backward()
    assert without_gradient(model) == []
    assert loss.item() == pytest.approx(exact.item(), rel=0.1)
    assert {x.dtype for result in found for x in result.values()} == {torch.float32, torch.int64}


@pytest.mark.gpu
@pytest.mark.parametrize("head", HEADS)
def test_a_step_has_the_same_bits_twice_on_a_gpu(head, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device, (images, targets) = torch.device("cuda"), batch([1, 2])
    images = [image.to(device) for image in images]
    targets = [{name: part.to(device) for name, part in target.items()} for target in targets]
    set_algorithms(device, deterministic=True, strict=True)
    try:
        steps = []
        for _ in range(2):
            model = tiny(head).to(device)
            loss_of(model, images, targets).backward()
            steps.append([parameter.grad for parameter in model.parameters()])
    finally:
        set_algorithms(device, deterministic=False)
    assert all(torch.equal(once, again) for once, again in zip(*steps, strict=True))


def test_anchors_are_not_rounded():
    """In detectron2: width sqrt(area / ratio), on corners of a grid whose stride is the level's, not size / cells."""
    anchors = Anchors([[10.0, 12.6], [20.0, 25.2]], (8, 64))
    maps = [torch.zeros(1, 1, 12, 12, dtype=torch.bfloat16), torch.zeros(1, 1, 2, 2)]
    found = anchors(ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)]), maps)[0]
    assert (found.shape, found.dtype) == ((12 * 12 * 6 + 2 * 2 * 6, 4), torch.float32)
    for row, (ratio, size) in enumerate([(0.5, 10.0), (0.5, 12.6), (1.0, 10.0), (1.0, 12.6), (2.0, 10.0), (2.0, 12.6)]):
        width, height = size / ratio**0.5, size * ratio**0.5
        expected = torch.tensor([-width, -height, width, height]) / 2
        torch.testing.assert_close(found[row], expected)
        torch.testing.assert_close(found[6 * 13 + row], expected + 8)  # second row, second column
    torch.testing.assert_close(found[-6 * 3 : -6 * 2].mean(0), torch.tensor([64.0, 0, 64, 0]) + found[-24:-18].mean(0))
    rounded = AnchorGenerator(((10.0, 12.6),), ((0.5, 1.0, 2.0),)).cell_anchors[0]
    assert torch.equal(found[:6].round(), rounded)


def test_a_box_is_pooled_from_the_level_of_its_size():
    """224 px from stride 16 (equation 1), half of it from stride 8; aligned: a constant slope is read exactly."""
    pool = AlignedPool((4, 8, 16, 32), 7)
    maps = {str(level): torch.full((1, 1, 256 // 2**level, 256 // 2**level), float(level)) for level in range(4)}
    sides = [20, 111, 112, 223, 224, 447, 448, 900]
    boxes = torch.tensor([[0.0, 0, side, side] for side in sides])
    assert pool(maps, [boxes], [(1024, 1024)])[:, 0, 3, 3].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    slope = {"0": (torch.arange(64.0) + 0.5).expand(1, 1, 64, 64) * 4}  # the position in pixels
    pooled = AlignedPool((4,), 7)(slope, [torch.tensor([[28.0, 28.0, 84.0, 84.0]])], [(256, 256)])
    torch.testing.assert_close(pooled[0, 0, 0], torch.arange(7) * 8.0 + 32)  # centres of bins of 8 pixels
    old = roi_align(slope["0"], [torch.tensor([[28.0, 28.0, 84.0, 84.0]])], 7, 1 / 4)
    torch.testing.assert_close(old[0, 0, 0], pooled[0, 0, 0] + 2)  # torchvision's default is half a cell off


@pytest.mark.parametrize(("head", "count"), [("retinanet", 5), ("mask_rcnn", 5)])
def test_a_wrong_number_of_anchor_sizes_is_one_line(head, count):
    with pytest.raises(
        InputError, match=rf"^task.anchor_sizes has 3 sizes, but the pyramid has {count} levels"
    ) as error:
        tiny(head, anchor_sizes=(8, 16, 32))
    assert "\n" not in str(error.value)


def test_retinanets_loss():
    """Focal loss over all anchors but the ignored, L1 over the positive, both per positive anchor of the batch."""
    model = tiny("retinanet")
    images, targets = batch([1, 3])
    outputs = []
    model.head.register_forward_hook(lambda *given: outputs.append(given[2]))
    losses = model(images, targets)
    logits, deltas = outputs[0]["cls_logits"].double(), outputs[0]["bbox_regression"].double()
    maps = list(model.backbone(model.transform(images)[0].tensors).values())
    anchors = model.anchor_generator(model.transform(images)[0], maps)[0]
    focal, boxes, positives = 0.0, 0.0, 0
    for index, target in enumerate(targets):
        overlaps = iou(target["boxes"], anchors)
        best, match = overlaps.max(0)
        positive = (best >= 0.5) | (overlaps == overlaps.max(1, keepdim=True).values).any(0)
        ignored = ~positive & (best >= 0.4)
        wanted = torch.zeros_like(logits[index])
        wanted[positive, target["labels"][match[positive]] - 1] = 1
        p = logits[index].sigmoid()
        right = torch.where(wanted == 1, p, 1 - p)
        weight = torch.where(wanted == 1, 0.25, 0.75)
        focal += (-weight * (1 - right) ** 2 * right.log())[~ignored].sum()
        goal, anchor = target["boxes"][match[positive]], anchors[positive]
        size = anchor[:, 2:] - anchor[:, :2]
        move = ((goal[:, :2] + goal[:, 2:]) - (anchor[:, :2] + anchor[:, 2:])) / 2 / size
        grow = ((goal[:, 2:] - goal[:, :2]) / size).log()
        boxes += (deltas[index][positive] - torch.cat([move, grow], 1)).abs().sum()
        positives += int(positive.sum())
    assert losses["classification"].item() == pytest.approx(focal.item() / positives, rel=1e-5)
    assert losses["bbox_regression"].item() == pytest.approx(boxes.item() / positives, rel=1e-5)


def iou(a, b):
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(2)
    return common / ((a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)[None] - common)


def test_proposals_learn_from_l1_or_smooth_l1():
    rpn = tiny("faster_rcnn").rpn
    labels, goals = [torch.tensor([1.0, 0, 1, -1])], [torch.zeros(4, 4)]
    deltas = torch.tensor([[0.05] * 4, [9.0] * 4, [2.0] * 4, [9.0] * 4])
    objectness, boxes = rpn.compute_loss(torch.zeros(4, 1), deltas, labels, goals)
    assert objectness.item() == pytest.approx(0.693147, rel=1e-5)
    assert boxes.item() == pytest.approx((4 * 0.05 + 4 * 2.0) / 3)
    rpn.beta = 1 / 9
    smooth = rpn.compute_loss(torch.zeros(4, 1), deltas, labels, goals)[1]
    assert smooth.item() == pytest.approx((4 * 0.05**2 * 4.5 + 4 * (2.0 - 1 / 18)) / 3)


@pytest.mark.parametrize(("head", "kept"), [("faster_rcnn", 1000), ("cascade_rcnn", 2000)])
def test_proposals_kept(head, kept):
    rpn = detector(models.cotnet_small(width=8), head).rpn
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (2000, kept)
    rpn.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (1000, 1000)


@pytest.mark.parametrize(
    ("head", "name", "extra"),
    [("faster_rcnn", "fasterrcnn", {}), ("mask_rcnn", "maskrcnn", {}), ("retinanet", "retinanet", {"num_classes": 91})],
)
def test_torchvisions_published_weights_fit(head, name, extra):
    """Keys and shapes of its ResNet-50 detectors of 91 classes, but counters of batches, which its frozen norms lack.

    Its RetinaNet computes P6 from P5, not from C5.
    """
    task = detection(head, channels=256, anchor_sizes=(32, 64, 128, 256, 512))
    with torch.device("meta"):
        other = getattr(theirs, f"{name}_resnet50_fpn")(weights=None, weights_backbone=None).state_dict()
        backbone = torchvision_model(model_name="resnet50")
    mine = build_detector(backbone.to_empty(device="cpu"), task, **{"num_classes": 90} | extra, mean=MEAN, std=STD)
    differ = ("num_batches_tracked", "extra_blocks.p6.weight")
    shapes = {key: x.shape for key, x in mine.state_dict().items() if not key.endswith(differ)}
    assert shapes == {key: x.shape for key, x in other.items() if not key.endswith(differ)}
    assert len(shapes) > 290


@pytest.mark.parametrize(
    ("backbone", "published", "count"), [("pvt_tiny", 23.0, 22_964_212), ("pvt_small", 34.2, 34_220_788)]
)
def test_sizes_of_the_published_retinanets(backbone, published, count):
    """PVT's table 3, in millions."""
    task = detection("retinanet", channels=256, anchor_sizes=(32, 64, 128, 256, 512))
    model = build_detector(getattr(models, backbone)(), task, num_classes=80, mean=MEAN, std=STD)
    assert sum(x.numel() for x in model.parameters()) == count
    assert round(count / 1e6, 1) == published


def test_a_copy_and_a_state_dict_give_the_same_detections():
    model = tiny("cascade_mask_rcnn", freeze=2, score_threshold=0.0)
    loss_of(model, *batch([1, 2])).backward()
    twin, fresh = copy.deepcopy(model), tiny("cascade_mask_rcnn", freeze=0, score_threshold=0.0)
    fresh.load_state_dict(model.state_dict())
    images = batch([3, 4])[0]
    with torch.no_grad():
        found = [net.eval()(images) for net in (model, twin, fresh)]
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one[key], other[key]) for other in others for key in one)


# A cascade's later stages train on what the earlier ones find: their losses rise before they fall.
STEPS = {head: 240 if head.startswith("cascade") else 64 for head in HEADS}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_falls(head):
    before, after = train(tiny(head, norm="bn", channels=64), STEPS[head], 3e-3, per_step=4)
    assert after < before / 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_falls_with_a_torchvision_backbone(head):
    torch.manual_seed(0)
    sizes = (12, 16, 24, 32, 48)
    backbone = torchvision_model(model_name="resnet18")
    model = slim(detector(backbone, head, norm="bn", channels=64, anchor_sizes=sizes))
    before, after = train(model, STEPS[head], 3e-3, per_step=4)
    assert after < before / 3
