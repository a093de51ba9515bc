"""Folding batch norms changes nothing but the last digits."""

import pytest
import torch
import torchvision
from torch import nn

from cotnet import models
from cotnet.models.fusing import fuse

pytestmark = pytest.mark.slow

ZOO = [name for name in models.__all__ if not name.endswith("_model")]
REMAINING = {  # norms that follow no convolution: after local aggregation, after attention
    "cotnet_small": 6,
    "se_cotnetd_50": 6,
    "botnet50": 3,
    "resnet50": 0,
    "resnet50d": 0,
    "seresnet50": 0,
    "resnest50": 0,
    "pvt_tiny": 0,
    "pvt_v2_b0": 0,
}


def trained(name):
    """A model with weights and statistics as training leaves them: none at its start."""
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=7)
    for key, tensor in model.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            nn.init.uniform_(tensor, *((0.5, 1.5) if key.endswith("var") else (0.2, 0.6)))
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@torch.inference_mode()
def deviation(model, images):
    logits, fused = model(images), fuse(model)(images)
    return ((fused - logits).abs().max() / logits.abs().max()).item()


@pytest.mark.parametrize("name", REMAINING)
def test_families_in_both_precisions(name):
    model, images = trained(name), torch.randn(2, 3, 64, 64)
    before = norms(model)
    fused = fuse(model)
    assert norms(fused) == REMAINING[name]
    assert norms(model) == before
    assert not fused.training
    assert deviation(model, images) < 1e-5
    assert deviation(model.double(), images.double()) < 1e-12


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in ZOO if name not in REMAINING])
def test_every_other_model(name):
    assert deviation(trained(name), torch.randn(1, 3, 64, 64)) < 1e-5


def test_other_peoples_models_are_refused():
    with pytest.raises(ValueError, match="ResNet is not one of this project's backbones"):
        fuse(torchvision.models.resnet18())
