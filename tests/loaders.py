"""What the tests of the loaders share: plans, and comparing what two loaders give."""

import torch

from data.loading.dali import DaliLoader
from data.loading.plan import EvaluationPlan, TrainPlan
from data.loading.torchvision import TorchvisionLoader

LOADERS = [DaliLoader, TorchvisionLoader]
CPU = torch.device("cpu")
TRAIN = TrainPlan(
    samples=32,
    batch_size=6,
    rank=0,
    world_size=1,
    seed=0,
    image_size=48,
    crop_scale=(0.08, 1.0),
    aspect_ratio=(3 / 4, 4 / 3),
    flip=0.5,
    crop_ratio=0.875,
    repeats=1,
    accumulation=1,
)
EVALUATION = EvaluationPlan(samples=32, batch_size=10, rank=0, world_size=1, image_size=48, crop_ratio=0.875)


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for mine, expected in zip(batch, other, strict=True):
            assert torch.equal(mine, expected)


def differences(batches, others):
    """Absolute differences (images, channels, height, width) of all the pixels of two runs over the same samples."""
    parts = []
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.indices, other.indices)
        assert torch.equal(batch.targets, other.targets)
        parts.append((batch.images.int() - other.images.int()).abs())
    return torch.cat(parts)


def assert_as_pil(difference, interpolation):
    """The bounds that data/loading/dali.py states; PIL rounds the filter's weights to 22 bits, torch to 15."""
    assert difference.max() <= (1 if interpolation == "bilinear" else 16)
    assert (difference > 1).float().mean() < 2e-4
    assert difference.float().mean() < 0.03
