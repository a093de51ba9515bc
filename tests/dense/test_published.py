"""Files of the form of detectron2 and OpenMMLab, written by hand from what their models print and their classes."""

import pytest
import torch
from drawn import batch, detector, segmenter
from torch import nn

from cotnet import models
from cotnet.dense.published import load_published
from cotnet.errors import InputError
from cotnet.models.cotnet import cot, split
from cotnet.models.resnet_base import ResNet, deep_stem, pooled_projection, stem

pytestmark = pytest.mark.slow

SUFFIXES = ("weight", "bias", "running_mean", "running_var")


def one_block_cotnet():
    """CoTNet with one block per stage."""
    return ResNet(stem, [[cot]] * 4, width=32, channels=64)


def one_block_se_cotnetd():
    blocks = [[split], [split], [cot, split], [cot]]
    first = lambda in_channels: deep_stem(in_channels, 32, pool=False)  # noqa: E731
    return ResNet(first, blocks, width=32, channels=64, strides=(2, 2, 2, 2), shortcut=pooled_projection)


def names_of_cot(ours, theirs):
    """(our module, detectron2's module) of a CoT layer."""
    yield f"{ours}.key_embed.0", f"{theirs}.key_embed.0"
    yield f"{ours}.key_embed.1", f"{theirs}.key_embed.0.norm"
    yield f"{ours}.embed.0", f"{theirs}.embed.0"
    yield f"{ours}.embed.1", f"{theirs}.embed.0.norm"
    yield f"{ours}.embed.3", f"{theirs}.embed.2"
    yield f"{ours}.embed.4", f"{theirs}.embed.3"
    yield f"{ours}.conv1x1.0", f"{theirs}.conv1x1.0"
    yield f"{ours}.conv1x1.1", f"{theirs}.conv1x1.1"
    yield f"{ours}.bn", f"{theirs}.bn"
    yield f"{ours}.se.0", f"{theirs}.se.0"
    yield f"{ours}.se.1", f"{theirs}.se.0.norm"
    yield f"{ours}.se.3", f"{theirs}.se.2"


def names_of_cotnet(backbone):
    body, bottom_up = "backbone.body", "backbone.bottom_up"
    deep = isinstance(backbone.conv1, nn.Sequential)
    if deep:
        yield from ((f"{body}.conv1.{index}", f"{bottom_up}.stem.conv1.{index}") for index in (0, 1, 3, 4, 6))
        yield f"{body}.bn1", f"{bottom_up}.stem.conv1.7"
    else:
        yield f"{body}.conv1", f"{bottom_up}.stem.conv1"
        yield f"{body}.bn1", f"{bottom_up}.stem.conv1.norm"
    for level in (1, 2, 3, 4):
        for index, block in enumerate(getattr(backbone, f"layer{level}")):
            ours, theirs = f"{body}.layer{level}.{index}", f"{bottom_up}.res{level + 1}.{index}"
            if isinstance(block.downsample, nn.Sequential):
                yield f"{ours}.downsample.{int(deep)}", f"{theirs}.shortcut{'.1' if deep else ''}"
                yield f"{ours}.downsample.{1 + deep}", f"{theirs}.shortcut{'.1' if deep else ''}.norm"
            for number in (1, 3):
                yield f"{ours}.conv{number}", f"{theirs}.conv{number}"
                yield f"{ours}.bn{number}", f"{theirs}.conv{number}.norm"
            if hasattr(block.conv2, "key_embed"):
                yield from names_of_cot(f"{ours}.conv2", f"{theirs}.conv2")
            else:
                yield from ((f"{ours}.conv2.{x}", f"{theirs}.conv2.{x}") for x in ("conv", "bn0", "fc1", "bn1", "fc2"))


def names_of_detectron2(backbone, stages, masks):
    yield from names_of_cotnet(backbone)
    for level in range(4):
        for ours, theirs in (("inner_blocks", "fpn_lateral"), ("layer_blocks", "fpn_output")):
            yield f"backbone.fpn.{ours}.{level}.0", f"backbone.{theirs}{level + 2}"
            yield f"backbone.fpn.{ours}.{level}.1", f"backbone.{theirs}{level + 2}.norm"
    yield "rpn.head.conv.0.0", "proposal_generator.rpn_head.conv"
    yield "rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits"
    yield "rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"
    for stage in stages:
        for index in range(4):
            yield f"roi_heads.box_head{stage}.{index}.0", f"roi_heads.box_head{stage}.conv{index + 1}"
            yield f"roi_heads.box_head{stage}.{index}.1", f"roi_heads.box_head{stage}.conv{index + 1}.norm"
        yield f"roi_heads.box_head{stage}.5", f"roi_heads.box_head{stage}.fc1"
        yield f"roi_heads.box_predictor{stage}.cls_score", f"roi_heads.box_predictor{stage}.cls_score"
        yield f"roi_heads.box_predictor{stage}.bbox_pred", f"roi_heads.box_predictor{stage}.bbox_pred"
    if masks:
        for index in range(4):
            yield f"roi_heads.mask_head.{index}.0", f"roi_heads.mask_head.mask_fcn{index + 1}"
            yield f"roi_heads.mask_head.{index}.1", f"roi_heads.mask_head.mask_fcn{index + 1}.norm"
        yield "roi_heads.mask_predictor.conv5_mask", "roi_heads.mask_head.deconv"
        yield "roi_heads.mask_predictor.mask_fcn_logits", "roi_heads.mask_head.predictor"


def names_of_openmmlab(model):
    """PVT's networks: the backbone's keys are the authors', the others' convolutions are ConvModules."""
    fpn = model.backbone.fpn
    for index in range(len(fpn.inner_blocks)):
        yield f"backbone.fpn.inner_blocks.{index}.0", f"neck.lateral_convs.{index}.conv"
        yield f"backbone.fpn.layer_blocks.{index}.0", f"neck.fpn_convs.{index}.conv"
    if hasattr(model, "head"):
        for number in (6, 7):
            yield f"backbone.fpn.extra_blocks.p{number}", f"neck.fpn_convs.{number - 3}.conv"
        for index in range(4):
            yield f"head.classification_head.conv.{index}.0", f"bbox_head.cls_convs.{index}.conv"
            yield f"head.regression_head.conv.{index}.0", f"bbox_head.reg_convs.{index}.conv"
        yield "head.classification_head.cls_logits", "bbox_head.retina_cls"
        yield "head.regression_head.bbox_reg", "bbox_head.retina_reg"
    elif hasattr(model, "rpn"):
        yield "rpn.head.conv.0.0", "rpn_head.rpn_conv"
        yield "rpn.head.cls_logits", "rpn_head.rpn_cls"
        yield "rpn.head.bbox_pred", "rpn_head.rpn_reg"
        yield "roi_heads.box_head.fc6", "roi_head.bbox_head.shared_fcs.0"
        yield "roi_heads.box_head.fc7", "roi_head.bbox_head.shared_fcs.1"
        yield "roi_heads.box_predictor.cls_score", "roi_head.bbox_head.fc_cls"
        yield "roi_heads.box_predictor.bbox_pred", "roi_head.bbox_head.fc_reg"
        for index in range(4):
            yield f"roi_heads.mask_head.{index}.0", f"roi_head.mask_head.convs.{index}.conv"
        yield "roi_heads.mask_predictor.conv5_mask", "roi_head.mask_head.upsample"
        yield "roi_heads.mask_predictor.mask_fcn_logits", "roi_head.mask_head.conv_logits"
    else:
        for level, convs in enumerate((1, 1, 2, 3)):
            for index in range(convs):
                yield f"levels.{level}.{2 * index}.0", f"decode_head.scale_heads.{level}.{2 * index}.conv"
                yield f"levels.{level}.{2 * index}.1", f"decode_head.scale_heads.{level}.{2 * index}.bn"
        yield "classifier", "decode_head.conv_seg"


def published(model, names, counters):
    """Our state dict under their names: background last, and no box and no mask for it."""
    own, file = model.state_dict(), {}
    for ours, theirs in names:
        for suffix in (*SUFFIXES, *(["num_batches_tracked"] if counters else [])):
            if (value := own.get(f"{ours}.{suffix}")) is None:
                continue
            if ours.endswith("cls_score"):
                value = torch.cat([value[1:], value[:1]])
            if "box_predictor" in ours and ours.endswith("bbox_pred") and len(value) > 4:
                value = value[4:]
            if ours.endswith("mask_fcn_logits"):
                value = value[1:]
            file[f"{theirs}.{suffix}"] = value
    return file


def shake(model):
    """Other weights and statistics than a new model has."""
    torch.manual_seed(5)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value) if "running_var" in name else 0.05 * torch.randn_like(value))
    return model.eval()


def same_results(one, other):
    images = [image[:, :, :56] for image in batch([1, 2])[0]]
    with torch.no_grad():
        pairs = list(zip(one.eval()(images), other.eval()(images), strict=True))
    for mine, theirs in pairs:
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert all(len(value) for value in mine.values())


@pytest.mark.parametrize(
    ("make", "head"),
    [(one_block_cotnet, "cascade_mask_rcnn"), (one_block_se_cotnetd, "mask_rcnn"), (one_block_cotnet, "faster_rcnn")],
)
def test_cotnets_files(make, head):
    settings = {"norm": "bn", "box_head": "4conv1fc", "score_threshold": 0.0, "freeze": 2}
    model, fresh = shake(detector(make(), head, **settings)), detector(make(), head, **settings)
    stages = [".0", ".1", ".2"] if "cascade" in head else [""]
    file = published(model, names_of_detectron2(make(), stages, "mask" in head), counters=False)
    printed = ["backbone.fpn_lateral2.norm.running_var", "proposal_generator.rpn_head.objectness_logits.bias"]
    printed += [f"roi_heads.box_head{stages[0]}.conv1.norm.bias", "backbone.bottom_up.res2.0.conv1.norm.weight"]
    printed += [f"roi_heads.box_head{stages[-1]}.fc1.weight"]  # names in the authors' logs
    assert set(printed) <= set(file)
    file["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    if "mask" in head:
        for name in model.state_dict():  # not in the file: background's boxes and masks, which nothing reads
            if name.endswith(("box_predictor.bbox_pred.weight", "box_predictor.bbox_pred.bias")):
                model.state_dict()[name][:4] = 0
            if "mask_fcn_logits" in name:
                model.state_dict()[name][:1] = 0
    assert load_published(fresh, file)
    same_results(model, fresh)


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "semantic_fpn"])
def test_pvts_files(head):
    def make(image_size=64):
        backbone = models.pvt_tiny(image_size=image_size)
        if head == "semantic_fpn":
            return segmenter(backbone)
        return detector(backbone, head, score_threshold=0.0)

    model, fresh = shake(make()), make()
    file = published(model, names_of_openmmlab(model), counters=True)
    body = {key: x for key, x in model.state_dict().items() if key.startswith("backbone.body.")}
    file |= {key.replace("backbone.body.", "backbone."): x for key, x in body.items()}
    file["backbone.pos_embed4"] = torch.cat([torch.randn(1, 1, 512), file["backbone.pos_embed4"]], 1)
    assert load_published(fresh, file)
    same_results(model, fresh)
    larger = make(image_size=96)  # its tables are resized
    assert load_published(larger, file)
    assert larger.backbone.body.pos_embed1.shape == (1, 24**2, 64)


def test_pvt_v2s_file():
    model, fresh = (detector(models.pvt_v2_b0(), "retinanet", score_threshold=0.0) for _ in range(2))
    shake(model)
    file = published(model, names_of_openmmlab(model), counters=True)
    body = {key: x for key, x in model.state_dict().items() if key.startswith("backbone.body.")}
    file |= {key.replace("backbone.body.", "backbone."): x for key, x in body.items()}
    assert load_published(fresh, file)
    same_results(model, fresh)


def test_what_does_not_fit_is_one_line():
    settings = {"norm": "bn", "box_head": "4conv1fc"}
    model = detector(one_block_cotnet(), "faster_rcnn", **settings)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    file = published(model, names_of_detectron2(one_block_cotnet(), [""], masks=False), counters=False)
    wrong = file | {"roi_heads.mask_head.deconv.weight": torch.zeros(1)}
    short = {key: x for key, x in file.items() if key != "roi_heads.box_head.fc1.bias"}
    small = file | {"backbone.fpn_lateral2.weight": torch.zeros(8, 64, 1, 1)}
    for state, message in (
        (wrong, r"^the published file's roi_heads.mask_head.deconv.weight fits nothing in this model"),
        (short, r"^the published file has nothing for this model's roi_heads.box_head.5.bias"),
        (small, r"^the published file's backbone.fpn.inner_blocks.0.0.weight has shape \(8, 64, 1, 1\), not \(16, 64"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load_published(model, state)
        assert "\n" not in str(error.value)
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    assert not load_published(model, before)  # our own form
