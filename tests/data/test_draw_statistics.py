"""20,000 draws of each kind against their definitions: exact distributions, or the library that defines them."""

import random
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from augmenting import NONE, transform
from loaders import TRAIN
from scipy import stats
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2

from data.augmentation.transform import ERASING_DRAWS, JITTER, erasing_boxes, jitter_draws, mix_draws
from data.loading.plan import random_crop_boxes
from data.loading.random import Stream, uniforms

N = 20_000
SAMPLES = np.arange(N)
PLAN = replace(TRAIN, samples=N, batch_size=64, image_size=224, crop_scale=(0.08, 0.3), flip=0.3)


def alike(values, distribution):
    """Whether the values may come from a distribution, given by its function or by a sample."""
    test = stats.ks_2samp if isinstance(distribution, np.ndarray) else stats.kstest
    return test(values, distribution).pvalue > 1e-3


def as_often(chosen, probability):
    return stats.binomtest(int(chosen.sum()), len(chosen), probability).pvalue > 1e-3


def unrelated(*columns):
    return np.abs(np.corrcoef(np.array(columns, dtype=float)) - np.eye(len(columns))).max() < 0.03


def test_crops_where_every_candidate_fits():
    """Then area, logarithm of the ratio and place are uniform; in an image so large rounding does not show."""
    sizes = np.tile([15_000, 20_000], (N, 1))
    top, left, height, width = PLAN.geometry(0, SAMPLES, sizes).box.T
    share, shape = height * width / (15_000 * 20_000), np.log(width / height)
    places = top / (15_000 - height), left / (20_000 - width)
    assert alike(share, stats.uniform(0.08, 0.22).cdf)
    assert alike(shape, stats.uniform(np.log(3 / 4), np.log(16 / 9)).cdf)
    assert all(alike(place, stats.uniform.cdf) for place in places)
    assert unrelated(share, shape, *places)


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((60, 400), (0.3, 1.0), (3 / 4, 4 / 3)),  # often falls back
        ((64, 64), (0.6, 1.0), (0.5, 2.0)),
    ],
)
def test_crops_are_distributed_as_torchvisions(size, scale, ratio):
    uniform = uniforms(0, 0, Stream.CROP, SAMPLES, 22)
    ours = random_crop_boxes(np.tile(size, (N, 1)), scale, ratio=ratio, uniform=uniform)
    torch.manual_seed(0)
    image, theirs = torch.zeros(1, *size), v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    drawn = [theirs.make_params([image]) for _ in range(4000)]  # slow ones
    boxes = np.array([[params[key] for key in ("top", "left", "height", "width")] for params in drawn])
    for mine, other in zip(ours.T, boxes.T, strict=True):
        assert alike(mine, other)
    assert alike(ours[:, 2] * ours[:, 3], boxes[:, 2] * boxes[:, 3])
    assert alike(ours[:, 3] / ours[:, 2], boxes[:, 3] / boxes[:, 2])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] > 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()


def test_flips_are_as_frequent_as_they_should_be_and_go_with_nothing_else():
    sizes = np.tile([375, 500], (N, 1))
    first, second = (PLAN.geometry(epoch, SAMPLES, sizes) for epoch in (0, 1))
    other_seed = replace(PLAN, seed=1).geometry(0, SAMPLES, sizes).flip
    column = torch.arange(2, dtype=torch.uint8).view(1, 1, 2, 1).expand(N, 3, 2, 1)
    augment = transform(replace(NONE, vertical_flip=0.3))
    upside_down = augment(column, torch.zeros(N, dtype=torch.int64), torch.from_numpy(SAMPLES), 0)[0]
    vertical = (upside_down[:, 0, 0, 0] > upside_down[:, 0, 1, 0]).numpy()
    for flip in (first.flip, second.flip, other_seed, vertical):
        assert as_often(flip, 0.3)
    top, left, height, width = first.box.T
    places = top / (376 - height), left / (501 - width)
    assert unrelated(first.flip, second.flip, other_seed, vertical, height * width, *places)
    assert not replace(PLAN, flip=0.0).geometry(0, SAMPLES, sizes).flip.any()
    assert replace(PLAN, flip=1.0).geometry(0, SAMPLES, sizes).flip.all()


def test_colour_jitter():
    """Every order of the four parts as often as another, factors and hue uniform."""
    order, parameters = jitter_draws(replace(NONE, color_jitter=0.4, hue=0.1), SAMPLES, seed=0, epoch=0)
    orders, counts = np.unique(order, axis=0, return_counts=True)
    assert {tuple(row) for row in orders.tolist()} == set(permutations(range(4)))
    assert stats.chisquare(counts).pvalue > 1e-3
    values = np.take_along_axis(parameters[..., 0], order.argsort(axis=1), axis=1).T
    for name, found in zip(JITTER, values, strict=True):
        assert alike(found, (stats.uniform(-0.1, 0.2) if name == "hue" else stats.uniform(0.6, 0.8)).cdf), name
    assert unrelated(*values, order[:, 0])
    alone, _ = jitter_draws(replace(NONE, hue=0.1), SAMPLES[:9], seed=0, epoch=0)
    assert [sorted(set(row)) for row in alone.tolist()] == [[-1, 3]] * 9


class Recorder:
    """Stands for an image, and keeps where it was written."""

    def __init__(self):
        self.boxes = []

    def __setitem__(self, place, values):
        _, rows, columns = place
        self.boxes.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))


@pytest.mark.parametrize(("height", "width"), [(224, 200), (40, 160)])
def test_erased_boxes_are_distributed_as_timms(height, width):
    uniform = uniforms(0, 0, Stream.ERASING, SAMPLES, ERASING_DRAWS)
    ours, rare = (erasing_boxes(probability, uniform, height=height, width=width) for probability in (1.0, 0.25))
    erased = rare[:, 2] > 0
    assert as_often(erased[ours[:, 2] > 0], 0.25)
    assert (rare == np.where(erased[:, None], ours, 0)).all(), "the probability moves no box"
    ours = ours[ours[:, 2] > 0]  # in a narrow image none of the ten candidates may fit
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()
    random.seed(0)
    theirs, written = RandomErasing(1.0, device="cpu"), Recorder()
    for _ in range(N // 2):
        theirs._erase(written, 1, height, width, torch.float32)
    others = np.array(written.boxes)
    assert abs(len(ours) / N - len(others) / (N // 2)) < 0.01
    for mine, other in zip(ours.T, others.T, strict=True):
        assert alike(mine, other)
    assert alike(ours[:, 2] * ours[:, 3], others[:, 2] * others[:, 3])
    assert alike(ours[:, 2] / ours[:, 3], others[:, 2] / others[:, 3])


@pytest.mark.parametrize(("mixup", "cutmix", "switch"), [(0.8, 1.0, 0.5), (0.2, 1.0, 0.3), (0.1, 0.0, 0.5)])
def test_mixing(mixup, cutmix, switch):
    """Lambda of Beta(alpha, alpha), cutmix as often as the switch says, its boxes of the area 1 - lambda."""
    given = replace(NONE, mixup=mixup, cutmix=cutmix, switch=switch, mix_by="element")
    by_cutmix, lam, boxes, left = mix_draws(given, SAMPLES, seed=0, epoch=0, height=4096, width=3072)
    assert as_often(by_cutmix, switch if cutmix else 0.0)
    for alpha, chosen in ((mixup, ~by_cutmix), (cutmix, by_cutmix)):
        assert not alpha or alike(lam[chosen], stats.beta(alpha, alpha).cdf)
    assert not boxes[~by_cutmix].any()
    boxes, left, lam = boxes[by_cutmix], left[by_cutmix], lam[by_cutmix]
    area = boxes[:, 2:].prod(axis=1) / (4096 * 3072)
    np.testing.assert_allclose(left, 1 - area, atol=1e-12)
    inside = (boxes[:, :2] > 0).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] < (4096, 3072)).all(axis=1)
    np.testing.assert_allclose(area[inside], 1 - lam[inside], atol=1e-3)
    assert (area <= 1 - lam + 1e-9).all(), "cut at the border, never larger"
    assert len(lam) == 0 or inside.any()


def test_cutmix_boxes_are_distributed_as_torchvisions():
    given = replace(NONE, cutmix=1.0, mix_by="element")
    _, _, boxes, left = mix_draws(given, SAMPLES, seed=0, epoch=0, height=192, width=224)
    torch.manual_seed(0)
    theirs, image = v2.CutMix(num_classes=2, alpha=1.0), [torch.zeros(3, 192, 224)]
    drawn = [theirs.make_params(image) for _ in range(N // 4)]
    corners = np.array([params["box"] for params in drawn])
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]])
    for mine, other in zip(ours, corners.T, strict=True):
        assert alike(mine, other)
    assert alike(left, np.array([params["lam_adjusted"] for params in drawn]))


def test_pairs_and_batches_draw_what_their_first_sample_would():
    both = replace(NONE, mixup=0.8, cutmix=1.0)

    def drawn(mix_by, samples):
        given = replace(both, mix_by=mix_by)
        found = mix_draws(given, samples, seed=0, epoch=2, height=224, width=224)
        return np.column_stack(found)

    alone = drawn("element", SAMPLES)
    assert (drawn("pair", SAMPLES) == np.concatenate([alone[: N // 2], alone[: N // 2][::-1]])).all()
    for first in range(0, N, 4000):
        assert (drawn("batch", SAMPLES[first : first + 64]) == alone[first]).all()
