import numpy as np
import pytest
import torch

from data.augmentation.mix import ERASING_DRAWS, cutmix, cutmix_boxes, erase, erasing_boxes, mix_targets, mixup
from data.loading.random import Stream, uniforms


def test_mixup_by_hand():
    images = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2)  # constant 0, 1, 2
    lam = torch.tensor([0.75, 0.75, 0.25])
    assert mixup(images, lam)[:, 0, 0, 0].tolist() == [0.5, 1.0, 0.5]
    expected = torch.tensor([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0], [0.75, 0.0, 0.25]])
    torch.testing.assert_close(mix_targets(torch.tensor([0, 1, 2]), lam, num_classes=3), expected)


def test_cutmix_by_hand():
    images = torch.arange(2.0)[:, None, None, None].expand(2, 3, 3, 4)
    mixed = cutmix(images, torch.tensor([[1, 2, 2, 2], [0, 0, 0, 0]]), originals=images)
    box = torch.tensor([[0.0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).expand(3, 3, 4)
    assert torch.equal(mixed, torch.stack([box, torch.ones(3, 3, 4)]))
    assert torch.equal(images[0], torch.zeros(3, 3, 4)), "the given batch was changed"


def test_cutmix_boxes_by_hand():
    lam = np.array([0.75, 0.75, 1.0, 0.0])
    uniform = np.array([(0.5, 0.5), (0.0, 0.99), (0.5, 0.5), (0.5, 0.5)])
    boxes, shares = cutmix_boxes(lam, uniform, height=10, width=8)
    # Half of each side, 10 x 8: 5 // 2 = 2 and 4 // 2 = 2 around (5, 4); then cut at the border; then nothing and all.
    assert boxes.tolist() == [[3, 2, 4, 4], [0, 5, 2, 3], [5, 4, 0, 0], [0, 0, 10, 8]]
    assert shares.tolist() == pytest.approx([1 - 16 / 80, 1 - 6 / 80, 1.0, 0.0])


def test_erase_by_hand():
    images = torch.zeros(2, 1, 3, 4)
    values = torch.tensor([5.0, 7.0])[:, None, None, None]
    erased = erase(images, torch.tensor([[1, 1, 2, 2], [0, 0, 0, 0]]), values=values)
    assert erased[0, 0].tolist() == [[0, 0, 0, 0], [0, 5, 5, 0], [0, 5, 5, 0]]
    assert not erased[1].any()


def test_nothing_is_erased_at_probability_zero():
    uniform = uniforms(0, 0, Stream.ERASING, np.arange(50), ERASING_DRAWS)
    assert not erasing_boxes(0.0, uniform, height=32, width=32).any()
