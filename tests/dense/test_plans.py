from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from dense_loaders import WHOLE

from cotnet.dense.plans import DenseEvaluationPlan, DensePlan, aspect_order, resized
from data.loading.plan import permutation

PLAIN = replace(WHOLE, short_sides=(800,), max_side=1333, flip=0.5)
SIZES = np.random.default_rng(0).integers(30, 700, (203, 2))


def plan(augmentation=PLAIN, *, batch_size=12, rank=0, world_size=1, seed=5, sizes=SIZES):
    return DensePlan(
        augmentation=augmentation,
        samples=len(SIZES),
        sizes=sizes,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
    )


def views(augmentation, *, count=1000, size=(480, 640), epoch=0):
    made = plan(augmentation)
    return [made.view(epoch, index, size) for index in range(count)]


def detectron_size(height, width, *, short, longest):
    """ResizeShortestEdge in its own order of operations."""
    scale = short / min(height, width)
    new = [short, scale * width] if height < width else [scale * height, short]
    if max(new) > longest:
        new = [side * (longest / max(new)) for side in new]
    return tuple(int(side + 0.5) for side in new)


def test_resized_as_detectron2():
    """Where the exact side ends in a half, detectron2's order of operations may round it either way."""
    sides, halves = np.random.default_rng(1).integers(20, 2000, (3000, 2)).tolist(), 0
    for height, width in sides:
        found = resized((height, width), 800, max_side=1333)
        longer = Fraction(min(height, width) * 1333, max(height, width))
        half = longer < 800 and longer.denominator == 2
        expected = detectron_size(height, width, short=800, longest=1333)
        assert np.abs(np.subtract(found, expected)).sum() <= half
        halves += half
    assert halves < 30
    assert resized((427, 640), 800, max_side=1333) == (800, 1199)
    assert resized((240, 640), 800, max_side=1333) == (500, 1333)
    assert resized((1, 4000), 800, max_side=1333) == (1, 1333)


def test_an_epoch_holds_each_image_once_in_the_permutations_order():
    made = plan()
    assert made.batches(3) == 16
    order = np.concatenate([made.indices(3, batch) for batch in range(16)])
    assert np.array_equal(order, permutation(203, 5, 3)[:192])
    assert not np.array_equal(order, np.concatenate([made.indices(4, batch) for batch in range(16)]))


@pytest.mark.parametrize("group", [1, 4])
def test_batches_do_not_depend_on_the_ranks(group):
    given = replace(PLAIN, aspect_group=group)
    whole = [plan(given).indices(2, batch) for batch in range(16)]
    for ranks in (2, 3):
        parts = [plan(given, rank=rank, world_size=ranks) for rank in range(ranks)]
        for batch, expected in enumerate(whole):
            assert np.array_equal(np.concatenate([part.indices(2, batch) for part in parts]), expected)


def test_groups_are_of_one_aspect_and_keep_the_order():
    wide = np.array([1, 0, 1, 1, 0, 0, 1, 0, 0, 1], bool)
    order = np.array([9, 1, 0, 4, 5, 2, 3, 7, 8, 6])
    # wide: 9 0 | 2 3 | 6, high: 1 4 | 5 7 | 8
    assert aspect_order(order, wide, group=2).tolist() == [9, 0, 1, 4, 5, 7, 2, 3, 8, 6]
    assert aspect_order(order, wide, group=1).tolist() == order.tolist()
    assert aspect_order(order, wide, group=20).tolist() == [1, 4, 5, 7, 8, 9, 0, 2, 3, 6]
    assert aspect_order(order, np.ones(10, bool), group=4).tolist() == order.tolist()


def test_aspect_groups_of_a_plan():
    made = plan(replace(PLAIN, aspect_group=4))
    order = np.concatenate([made.indices(0, batch) for batch in range(made.batches(0))])
    assert len(np.unique(order)) == len(order) == 192
    wide = (SIZES[:, 1] > SIZES[:, 0])[order].reshape(-1, 4)
    assert (wide.all(axis=1) | ~wide.any(axis=1)).all()
    assert 10 < wide.all(axis=1).sum() < 38
    unknown = plan(replace(PLAIN, aspect_group=4), sizes=None)
    assert np.array_equal(unknown.indices(0, 0), plan().indices(0, 0))


def test_short_sides_are_drawn_from_the_list_or_between():
    listed = replace(PLAIN, short_sides=(640, 704, 800))
    shorts = np.array([view.size[0] for view in views(listed)])
    values, counts = np.unique(shorts, return_counts=True)
    assert values.tolist() == [640, 704, 800]
    assert np.abs(counts - 1000 / 3).max() < 4 * np.sqrt(1000 * 2 / 9)
    spread = np.array([view.size[0] for view in views(replace(listed, between=True))])
    assert (spread.min(), spread.max()) == (640, 800)
    assert len(np.unique(spread)) == 161
    assert abs(spread.mean() - 720) < 4 * np.sqrt(161**2 / 12 / 1000)


def test_flips_have_their_probability_and_change_with_the_epoch():
    first, second = ([view.flip for view in views(replace(PLAIN, flip=0.3), epoch=epoch)] for epoch in (0, 1))
    assert abs(np.mean(first) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)
    assert abs(np.mean(np.equal(first, second)) - 0.58) < 0.07
    assert not any(view.flip for view in views(replace(PLAIN, flip=0), count=50))


def test_a_plain_view_is_the_whole_image():
    view = plan().view(0, 7, (480, 640))
    assert view[0] == view.output == (800, 1067)
    assert (view.offsets, view.photometric) == (((0, 0),), ())
    assert view == plan(rank=1, world_size=3).view(0, 7, (480, 640))


def test_large_scale_jitter_crops_or_pads_to_the_square():
    """BoTNet: the image fitted into 1024 x 1024 times a factor, then a random crop of 1024."""
    made = views(replace(PLAIN, short_sides=(1024,), max_side=1024, jitter=(0.1, 2.0), crop=1024))
    widths = np.array([view.size[1] for view in made])
    assert abs(widths.mean() - 1024 * 1.05) < 4 * 1024 * 1.9 / np.sqrt(12 * 1000)
    assert widths.min() < 130 and 2020 < widths.max() <= 2048
    assert {view.output for view in made} == {(1024, 1024)}
    offsets, room = (
        np.array([view.offsets[0] for view in made]),
        np.maximum(0, [np.subtract(view.size, 1024) for view in made]),
    )
    assert (offsets >= 0).all() and (offsets <= room).all()
    assert not offsets[room == 0].any()
    shares = (offsets / np.maximum(room, 1))[room > 100]
    assert abs(shares.mean() - 0.5) < 4 / np.sqrt(12 * len(shares))
    assert shares.min() < 0.02 and shares.max() > 0.98


def test_semantic_fpns_recipe():
    """mmsegmentation: fitted into (2048, 512) times a ratio in [0.5, 2], crop of 512, up to ten candidates."""
    given = replace(PLAIN, short_sides=(512,), max_side=2048, jitter=(0.5, 2), crop=512, crop_max_share=0.75)
    made = views(given, size=(480, 640), count=600)
    heights = np.array([view.size[0] for view in made])
    assert heights.min() >= 256 and heights.max() <= 1024
    assert abs(heights.mean() - 640) < 4 * 768 / np.sqrt(12 * 600)
    assert all(len(view.offsets) == 10 for view in made)
    large = next(view for view in made if min(view.size) > 900)
    assert len(set(large.offsets)) == 10
    one = views(replace(given, crop_max_share=1), size=(480, 640), count=20)
    assert [view.offsets for view in one] == [view.offsets[:1] for view in made[:20]]


def test_photometric_changes_are_those_of_mmsegmentation():
    made = [dict(view.photometric) for view in views(replace(PLAIN, photometric=True))]
    limits = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in limits.items():
        factors = np.array([changes[name] for changes in made if name in changes])
        assert abs(len(factors) - 500) < 4 * np.sqrt(250)
        assert low <= factors.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < factors.max() <= high
    orders = {tuple(changes) for changes in made if len(changes) == 4}
    assert orders == {
        ("brightness", "contrast", "saturation", "hue"),
        ("brightness", "saturation", "hue", "contrast"),
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_takes_every_image_once_in_fixed_batches(ranks):
    parts = [evaluation(rank=rank, world_size=ranks) for rank in range(ranks)]
    found = {
        batch * ranks + rank: part.indices(0, batch).tolist()
        for rank, part in enumerate(parts)
        for batch in range(part.batches(0))
    }
    assert [found[batch] for batch in sorted(found)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def evaluation(*, rank=0, world_size=1, multiple=1):
    return DenseEvaluationPlan(
        samples=10, batch_size=4, rank=rank, world_size=world_size, short_side=512, max_side=2048, multiple=multiple
    )


def test_evaluations_views():
    view = evaluation().view(0, 3, (683, 512))
    assert view == (view.size, False, ((0, 0),), view.size, ())
    assert view.size == (683, 512)
    assert evaluation(multiple=32).view(0, 3, (683, 512)).size == (704, 512)
    assert evaluation(multiple=32).view(0, 3, (300, 1300)).size == (480, 2048)
