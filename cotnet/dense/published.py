"""Load published detectors and segmentation networks: CoTNet's (detectron2) and PVT's (mmdetection, mmsegmentation).

Rules name their modules as ours. Their last class is background, our first is; they have no box or mask for it.
"""

import re

import torch
from torch import nn

from cotnet.errors import InputError

Rules = tuple[tuple[str, str, int], ...]  # pattern, replacement; {n} is the last group, a number, less the third entry

DROPPED = re.compile(r"^pixel_(mean|std)$|\.anchor_generator\.")
DETECTRON2: Rules = (
    (r"^backbone\.bottom_up\.stem\.conv1\.(?:norm|7)\.", "backbone.body.bn1.", 0),
    (r"^backbone\.bottom_up\.stem\.", "backbone.body.", 0),
    (r"^backbone\.bottom_up\.res(\d)\.", "backbone.body.layer{n}.", 1),
    (r"\.shortcut\.1\.norm\.", ".downsample.2.", 0),
    (r"\.shortcut\.(?:1|norm)\.", ".downsample.1.", 0),
    (r"\.shortcut\.", ".downsample.0.", 0),
    (r"(embed|se)\.0\.norm\.", "{0}.1.", 0),
    (r"\.embed\.([23])\.", ".embed.{n}.", -1),
    (r"\.se\.2\.", ".se.3.", 0),
    (r"(layer\d\.\d+)\.conv([13])\.norm\.", "{0}.bn{n}.", 0),
    (r"^backbone\.fpn_lateral(\d)\.norm\.", "backbone.fpn.inner_blocks.{n}.1.", 2),
    (r"^backbone\.fpn_lateral(\d)\.", "backbone.fpn.inner_blocks.{n}.0.", 2),
    (r"^backbone\.fpn_output(\d)\.norm\.", "backbone.fpn.layer_blocks.{n}.1.", 2),
    (r"^backbone\.fpn_output(\d)\.", "backbone.fpn.layer_blocks.{n}.0.", 2),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0.", 0),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits.", 0),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred.", 0),
    (r"^(roi_heads\.box_head(?:\.\d)?)\.conv(\d)\.norm\.", "{0}.{n}.1.", 1),
    (r"^(roi_heads\.box_head(?:\.\d)?)\.conv(\d)\.", "{0}.{n}.0.", 1),
    (r"^(roi_heads\.box_head(?:\.\d)?)\.fc(\d)\.", "{0}.fc{n}.", -5),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.norm\.", "roi_heads.mask_head.{n}.1.", 1),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", "roi_heads.mask_head.{n}.0.", 1),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask.", 0),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits.", 0),
)
OPENMMLAB: Rules = (
    (r"^((?!backbone).*(?:convs|scale_heads\.\d))\.(\d)\.conv\.", "{0}.{n}.0.", 0),
    (r"^((?!backbone).*(?:convs|scale_heads\.\d))\.(\d)\.bn\.", "{0}.{n}.1.", 0),
    (r"^backbone\.", "backbone.body.", 0),
    (r"^neck\.lateral_convs\.", "backbone.fpn.inner_blocks.", 0),
    (r"^neck\.fpn_convs\.", "backbone.fpn.layer_blocks.", 0),
    (r"^bbox_head\.cls_convs\.", "head.classification_head.conv.", 0),
    (r"^bbox_head\.reg_convs\.", "head.regression_head.conv.", 0),
    (r"^bbox_head\.retina_cls\.", "head.classification_head.cls_logits.", 0),
    (r"^bbox_head\.retina_reg\.", "head.regression_head.bbox_reg.", 0),
    (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0.", 0),
    (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits.", 0),
    (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred.", 0),
    (r"^roi_head\.bbox_head((?:\.\d)?)\.shared_convs\.", "roi_heads.box_head{0}.", 0),
    (r"^roi_head\.bbox_head((?:\.\d)?)\.shared_fcs\.(\d)\.", "roi_heads.box_head{0}.fc{n}.", -6),
    (r"^roi_head\.bbox_head((?:\.\d)?)\.fc_cls\.", "roi_heads.box_predictor{0}.cls_score.", 0),
    (r"^roi_head\.bbox_head((?:\.\d)?)\.fc_reg\.", "roi_heads.box_predictor{0}.bbox_pred.", 0),
    (r"^roi_head\.mask_head\.convs\.", "roi_heads.mask_head.", 0),
    (r"^roi_head\.mask_head\.upsample\.", "roi_heads.mask_predictor.conv5_mask.", 0),
    (r"^roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_predictor.mask_fcn_logits.", 0),
    (r"^decode_head\.scale_heads\.", "levels.", 0),
    (r"^decode_head\.conv_seg\.", "classifier.", 0),
)
# Where our model has no such key: one linear layer after convolutions; P6 and P7 after three levels.
OTHERWISE = {".fc6.": ".5.", ".layer_blocks.3.0.": ".extra_blocks.p6.", ".layer_blocks.4.0.": ".extra_blocks.p7."}


def load_published(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    """Load a state dict of detectron2's or OpenMMLab's form into a model of `build_detector` or `build_segmenter`.

    Returns False, and loads nothing, if it has another form. Raises InputError if a key or shape does not fit, or one
    is missing; the model is then unchanged.
    """
    if any(key.startswith(("backbone.bottom_up.", "proposal_generator.")) for key in state):
        rules = DETECTRON2
    elif any(key.startswith(("neck.", "decode_head.")) for key in state):
        rules = OPENMMLAB
    else:
        return False
    own = model.state_dict()
    # Frozen BatchNorm has no counter.
    mapped = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")}
    for key, value in state.items():
        if DROPPED.search(key):
            continue
        name = _renamed(key, rules, own)
        if name not in own:
            raise InputError(
                f"the published file's {key} fits nothing in this model; check backbone, task.head and norm"
            )
        mapped[name] = _converted(name, value, own[name])
    if missing := [key for key in own if key not in mapped]:
        raise InputError(f"the published file has nothing for this model's {missing[0]}; check backbone and task.head")
    _fit_shapes(model, mapped, own)
    model.load_state_dict(mapped)
    return True


def _fit_shapes(model: nn.Module, mapped: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    for prefix, module in model.named_modules():
        if resize := getattr(module, "resize_tables", None):
            resize(mapped, f"{prefix}.")
    for name, value in mapped.items():
        if value.shape != own[name].shape:
            given, need = tuple(value.shape), tuple(own[name].shape)
            raise InputError(f"the published file's {name} has shape {given}, not {need}; check the model's settings")


def _renamed(key: str, rules: Rules, own: dict[str, torch.Tensor]) -> str:
    for pattern, replacement, less in rules:
        if match := re.search(pattern, key):
            number = int(match[match.lastindex]) - less if "{n}" in replacement and match.lastindex else 0
            new = replacement.format(*match.groups(), n=number)
            key = key[: match.start()] + new + key[match.end() :]
    if key not in own:
        for theirs, ours in OTHERWISE.items():
            key = key.replace(theirs, ours)
    return key


def _converted(name: str, value: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The value with background first, or without the row of PVT's class token."""
    if "box_predictor" in name and "cls_score" in name:
        return value.roll(1, 0)
    if "box_predictor" in name or "mask_fcn_logits" in name:
        background = value.new_zeros(len(own) - len(value), *value.shape[1:]) if len(own) > len(value) else value[:0]
        return torch.cat([background, value])
    return value[:, 1:] if name.endswith(".pos_embed4") else value
