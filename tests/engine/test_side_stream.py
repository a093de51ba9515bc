"""Augmentation on a stream of its own gives the pixels and the losses of augmentation in line."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from augmenting import NONE, transform
from torch.nn import functional as F

from cotnet import models
from cotnet.engine.side_stream import beside_the_step
from cotnet.engine.step import TrainData
from data.loading.plan import to_device

STEPS, BATCH, SIDE = 12, 32, 64
AUGMENTATION = replace(NONE, policy="rand-cot-m15-n2-mstd0.5", mixup=0.8, erasing=0.5, erasing_fill="pixel")


class Noise:
    """Another batch of noise for each step, copied to the device as a loader does."""

    def __init__(self, device):
        self.device = device

    def batches(self, epoch, first=0):
        for step in range(first, STEPS):
            drawn = np.random.default_rng([epoch, step])
            pixels = drawn.integers(0, 256, (BATCH, 3, SIDE, SIDE), dtype=np.uint8)
            targets = drawn.integers(0, 10, BATCH)
            indices = torch.arange(step * BATCH, (step + 1) * BATCH)
            yield to_device(pixels, self.device), to_device(targets, self.device), indices


def train_data(device):
    return TrainData(loader=Noise(device), steps_per_epoch=STEPS, transform=transform(AUGMENTATION), files=())


def trained(data, device):
    """Inputs, targets and losses of an epoch; nothing waits for the device before its end."""
    torch.manual_seed(0)
    model = models.resnet_small(num_classes=10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    kept, losses = [], []
    for batch in data.loader.batches(3):
        images, targets = data.transform(*batch, 3)
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.append((images.clone(), targets.clone()))
        losses.append(loss.detach())
        del batch, images, targets  # their memory is free for the next batch
    return kept, torch.stack(losses).tolist()


def test_on_a_cpu_nothing_changes():
    data = train_data(torch.device("cpu"))
    assert beside_the_step(data, torch.device("cpu")) is data


@pytest.mark.gpu
def test_the_same_pixels_and_losses_beside_the_step(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    device = torch.device("cuda", 0)
    data = train_data(device)
    expected, losses = trained(data, device)
    found, again = trained(beside_the_step(data, device), device)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(found) == STEPS
    assert again == losses
