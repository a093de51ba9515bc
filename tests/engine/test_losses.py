"""The losses against values worked out by hand and against the libraries that publish them."""

import math

import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from cotnet.config.compose import compose
from cotnet.engine.losses import binary_cross_entropy, loss_function
from cotnet.settings import TrainSettings


def of(**values):
    return loss_function(TrainSettings(**{**compose("train", ["data=digits"])["train"], **values}))


def test_bce_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)  # probabilities 1/2 and 3/4
    loss = binary_cross_entropy(logits, torch.tensor([1]), label_smoothing=0.2, threshold=None)
    expected = -(0.1 * math.log(0.5) + 0.9 * math.log(0.5) + 0.9 * math.log(0.75) + 0.1 * math.log(0.25)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_bce_is_timms():
    torch.manual_seed(0)
    logits, classes = torch.randn(6, 10, dtype=torch.float64), torch.randint(10, (6,))
    mixed = 0.7 * F.one_hot(classes, 10).double() + 0.3 * F.one_hot(classes.roll(1), 10)
    for smoothing in (0.0, 0.1):
        theirs = BinaryCrossEntropy(smoothing=smoothing)(logits, classes)
        torch.testing.assert_close(of(loss="bce", label_smoothing=smoothing)(logits, classes), theirs)
    for threshold in (None, 0.2):
        theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold)(logits, mixed)
        ours = of(loss="bce", label_smoothing=0.0, bce_threshold=threshold)(logits, mixed)
        torch.testing.assert_close(ours, theirs)


def test_both_classes_of_a_mixed_image_are_there_and_smoothed():
    logits, mixed = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[0.7, 0.3, 0.0, 0.0]], dtype=torch.float64)
    logits.requires_grad_()
    of(loss="bce", label_smoothing=0.1, bce_threshold=0.2)(logits, mixed).backward()
    wanted = 0.5 - 4 * logits.grad  # the gradient of the mean is (sigmoid - target) / classes
    torch.testing.assert_close(wanted, torch.tensor([[0.925, 0.925, 0.025, 0.025]], dtype=torch.float64))


def test_cross_entropy_takes_soft_targets_and_smoothing():
    logits, mixed = torch.randn(3, 5), torch.rand(3, 5).softmax(1)
    expected = -((0.9 * mixed + 0.02) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(of(loss="ce", label_smoothing=0.1)(logits, mixed), expected)
