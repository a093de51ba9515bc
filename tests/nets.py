"""Backbones for tests."""

import torch

from cotnet import models


def build(name, **settings):
    """A model whose norms are not at their start, so that every block counts."""
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=5, **settings)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.2, 0.6)
    return model
