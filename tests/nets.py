"""Backbones for tests."""

import torch
from torch import nn

from cotnet import models


def build(name, **settings):
    """A model whose norms are not at their start, so that every block counts."""
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=5, **settings)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.2, 0.6)
    return model


def random_norms(model):
    """Norms that change values, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.double().eval()
