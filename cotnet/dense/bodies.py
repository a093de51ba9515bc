"""Backbones without their classifiers, as stages of feature maps: ours, torchvision's and timm's.

State-dict keys stay the backbone's own, so weights of a classifier are loaded before its body is taken.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cotnet.errors import InputError
from cotnet.models.freezing import PartlyFrozen
from cotnet.models.pvt import PVT
from cotnet.models.timm_protocol import Backbone

SEQUENCES = {"features", "trunk_output", "layers", "blocks"}  # torchvision's children that hold the steps one by one
HEADS = {"avgpool", "classifier", "fc", "permute", "encoder"}  # torchvision's first child that is no step any more
STRIDES = (4, 8, 16, 32)
UNFIT = (AssertionError, RuntimeError, TypeError, ValueError)  # what libraries raise for images of another size


class TorchvisionBody(PartlyFrozen):
    """A torchvision classifier up to its last map, cut where the stride changes; stages of stride 4 to 32.

    Raises InputError if there are not two such stages.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.last_is_channels = hasattr(classifier, "permute")  # Swin's maps are (B, H, W, C)
        self.steps: list[str] = []
        for name, child in classifier.named_children():
            if name in HEADS:
                break
            self.add_module(name, child)
            inside = [f"{name}.{inner}" for inner, _ in child.named_children()]
            self.steps += inside if name in SEQUENCES else [name]
        self.cuts = self._cuts(type(classifier).__name__)
        end = self.steps.index(list(self.cuts)[-1]) + 1
        for step in self.steps[end:]:
            parent, _, name = step.rpartition(".")
            delattr(self.get_submodule(parent), name)
        self.steps = self.steps[:end]
        self.stage_strides, self.stage_channels = zip(*self.cuts.values(), strict=True)

    @torch.no_grad()
    def _cuts(self, name: str) -> dict[str, tuple[int, int]]:
        """The last step of each stage, with its stride and channels, found with an empty image."""
        side, found = 128, {}
        x = torch.zeros(1, 3, side, side, device=next(self.parameters()).device)
        self.eval()
        try:
            for step in self.steps:
                x = self.get_submodule(step)(x)
                channels, height = self._maps(x).shape[1:3]
                found[side // height] = (step, (side // height, channels))
        except UNFIT as error:
            raise no_pyramid(name) from error
        if sum(stride in found for stride in STRIDES) < 2:
            raise no_pyramid(name)
        return dict(found[stride] for stride in STRIDES if stride in found)

    def _maps(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2) if self.last_is_channels else x

    def stage_parts(self) -> Sequence[Sequence[str]]:
        ends = [self.steps.index(step) + 1 for step in self.cuts]
        return [self.steps[: ends[0] - 1], *(self.steps[a:b] for a, b in zip([ends[0] - 1, *ends], ends, strict=False))]

    def forward_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps of all stages, (B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])."""
        x, maps = images, []
        for step in self.steps:
            x = self.get_submodule(step)(x)
            if step in self.cuts:
                maps.append(self._maps(x))
        return maps


def no_pyramid(name: str) -> InputError:
    """The error of a backbone that cannot stand below a dense head."""
    need = "maps of strides 4, 8, ... of images of any size"
    return InputError(f"{name} has no feature pyramid ({need}); take another backbone for this task")


def headless(backbone: nn.Module) -> Any:
    """The backbone's body: every parameter that is left gets a gradient from the stage maps.

    It has `stage_channels` and `stage_strides`; `stage_maps` runs it. Raises InputError without a feature pyramid.
    """
    if isinstance(backbone, PVT):
        backbone.drop_class_token()
    elif hasattr(backbone, "forward_stages"):
        setattr(backbone, backbone.classifier if isinstance(backbone, Backbone) else "fc", nn.Identity())
    elif hasattr(backbone, "forward_intermediates"):
        return _timm_body(backbone)
    else:
        return TorchvisionBody(backbone)
    return backbone


def _timm_body(model: Any) -> Any:
    infos = getattr(model, "feature_info", [])
    last = {info["reduction"]: index for index, info in enumerate(infos) if info["reduction"] in STRIDES}
    if len(last) < 2:
        raise no_pyramid(type(model).__name__)
    model.stage_indices = list(last.values())
    model.stage_strides, model.stage_channels = tuple(last), tuple(infos[index]["num_chs"] for index in last.values())
    model.prune_intermediate_layers(model.stage_indices, prune_norm=True, prune_head=True)
    try:
        with torch.no_grad():
            stage_maps(model.eval(), torch.zeros(1, 3, 64, 96, device=next(model.parameters()).device))
    except UNFIT as error:  # Swin without strict_img_size=False
        raise no_pyramid(type(model).__name__) from error
    return model


def stage_maps(body: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """The maps of all stages of a body, (B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])."""
    if hasattr(body, "forward_stages"):
        return body.forward_stages(images)
    return body.forward_intermediates(images, indices=body.stage_indices, intermediates_only=True)


def stage_names(body: Any) -> Sequence[Sequence[str]]:
    """What `task.freeze` freezes one after the other, as names of modules and parameters: the stem, then the stages."""
    if isinstance(body, PartlyFrozen):
        return body.stage_parts()
    from timm.models import group_parameters

    groups = group_parameters(body, body.group_matcher(coarse=True))
    return [[name.rpartition(".")[0] or name for name in groups[key]] for key in sorted(groups)]
