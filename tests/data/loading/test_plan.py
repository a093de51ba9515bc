from dataclasses import replace

import loaders
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from data.loading.plan import PADDING, EvaluationPlan, central_geometry, permutation, random_crop_boxes
from data.loading.random import Stream, uniforms

TRAIN = replace(loaders.TRAIN, samples=1003, batch_size=24, image_size=32)
EVALUATION = EvaluationPlan(samples=101, batch_size=7, rank=0, world_size=1, image_size=32, crop_ratio=0.875)


def epoch_of(plan, epoch, ranks):
    """(batches, global batch) indices, put together from all ranks."""
    plans = [replace(plan, rank=rank, world_size=ranks) for rank in range(ranks)]
    return np.stack(
        [np.concatenate([each.indices(epoch, batch) for each in plans]) for batch in range(plans[0].batches(epoch))]
    )


def by_place(taken, parts):
    """(batches, global batch) indices of strided micro-batches in the order of their places in the global batch."""
    return taken.reshape(len(taken), parts, -1).swapaxes(1, 2).reshape(taken.shape)


@pytest.mark.parametrize("samples", [24, 97, 1003])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_training_takes_no_sample_twice_and_leaves_only_the_remainder_out(samples, ranks):
    plan = replace(TRAIN, samples=samples)
    left_out = []
    for epoch in range(5):
        taken = epoch_of(plan, epoch, ranks)
        assert (taken == epoch_of(plan, epoch, 1)).all(), "another number of ranks, other batches"
        assert len(np.unique(taken)) == taken.size == samples - samples % 24
        left_out.append(frozenset(range(samples)) - frozenset(taken.ravel().tolist()))
    if samples % 24:
        assert len(set(left_out)) == 5


@pytest.mark.parametrize(("ranks", "repeats", "left_out"), [(1, 1, 1), (2, 1, 3), (3, 1, 30), (2, 3, 2)])
def test_an_epoch_goes_on_without_the_files_excluded_in_its_middle(ranks, repeats, left_out):
    """Two batches are done when files of the third and later ones turn out damaged: the others follow as they would."""
    before = replace(TRAIN, samples=97, repeats=repeats)
    done = epoch_of(before, 3, ranks)[:2].ravel()
    planned = permutation(97, 0, 3)
    assert set(done % 97) <= set(planned[:48])
    gone = tuple(sorted(planned[50 : 50 + left_out].tolist()))
    after = replace(before, samples=97 - left_out, left_out=gone)
    places = np.delete(np.arange(97), gone)  # of the files that are left
    taken = epoch_of(after, 3, ranks)
    assert (places[taken % after.samples][:2].ravel() == done % 97).all()
    order = places[by_place(taken, 1 if repeats == 1 else ranks).ravel()[::repeats] % after.samples]
    assert (order == planned[~np.isin(planned, gone)][: len(order)]).all()
    assert taken.size == after.samples - after.samples % 24


def test_order_is_pinned():
    order = [6, 8, 0, 7, 3, 4, 9, 2, 1, 5]
    assert permutation(10, 0, 0).tolist() == order
    assert permutation(10, 0, 1).tolist() != order


def test_epochs_and_seeds_are_uncorrelated():
    orders = [permutation(20_000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
    ranks = [np.argsort(order) for order in orders]
    for kind in (orders, ranks):
        assert np.abs(np.corrcoef(kind) - np.eye(5)).max() < 0.03


def test_batches_mix_classes():
    """20 images in each of 1,000 classes, listed class by class: a batch's entropy is that of a random draw."""
    labels = np.arange(20_000) // 20
    plan = replace(TRAIN, samples=20_000, batch_size=250)
    rng = np.random.default_rng(0)

    def entropy(classes):
        return stats.entropy(np.bincount(classes, minlength=1000))

    ours = [entropy(labels[plan.indices(0, batch)]) for batch in range(80)]
    random = [entropy(labels[rng.choice(20_000, 250, replace=False)]) for _ in range(80)]
    assert np.mean(ours) == pytest.approx(np.mean(random), abs=0.02)


@pytest.mark.parametrize("samples", [1, 7, 50, 101])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_takes_every_sample_once_in_batches_of_one_size(samples, ranks):
    plans = [replace(EVALUATION, samples=samples, rank=rank, world_size=ranks) for rank in range(ranks)]
    batches = [plan.indices(0, batch) for plan in plans for batch in range(plan.batches(0))]
    assert all(batch.shape == (7,) for batch in batches)
    taken = np.concatenate(batches)
    assert sorted(taken[taken != PADDING].tolist()) == list(range(samples))
    assert (taken == PADDING).sum() == -samples % 7
    assert all((batch != PADDING).any() for batch in batches), "a batch without an image"


def test_training_without_a_random_crop_sees_the_evaluations_geometry():
    sizes = np.array([[50, 60], [70, 41], [40, 40]])
    train = replace(TRAIN, crop_scale=None, flip=0.0).geometry(0, np.arange(3), sizes)
    for mine, expected in zip(train, EVALUATION.geometry(0, np.arange(3), sizes), strict=True):
        assert (mine == expected).all()


def test_flips_and_crops_are_drawn_per_epoch_and_sample():
    indices = np.arange(4000)
    sizes = np.tile([375, 500], (4000, 1))
    first, again, next_epoch = (TRAIN.geometry(epoch, indices, sizes) for epoch in (0, 0, 1))
    assert (first.box == again.box).all()
    assert first.flip.mean() == pytest.approx(0.5, abs=0.03)
    assert (first.box == next_epoch.box).all(1).mean() < 0.01
    assert (first.flip == next_epoch.flip).mean() == pytest.approx(0.5, abs=0.03)
    alone = TRAIN.geometry(0, indices[[17, 5]], sizes[:2])
    assert (alone.box == first.box[[17, 5]]).all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_repeated_augmentation(ranks):
    """Each sample three times with crops of its own; the epoch is as long, and sees a third of the set."""
    plan = replace(TRAIN, repeats=3)
    taken = epoch_of(plan, 0, ranks)
    assert taken.shape == epoch_of(TRAIN, 0, 1).shape
    files, counts = np.unique(taken % 1003, return_counts=True)
    assert counts.tolist() == [3] * len(files)
    assert len(np.unique(taken)) == taken.size
    assert (by_place(taken, ranks).ravel() % 1003).reshape(-1, 3).std(1).max() == 0
    boxes = plan.geometry(0, taken[0], np.tile([375, 500], (24, 1))).box
    assert len(np.unique(boxes, axis=0)) == 24


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 1), (8, 1), (1, 8), (2, 4), (4, 2), (3, 4)])
@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_repeats_in_a_global_batch_do_not_depend_on_how_it_is_shared(ranks, accumulation, repeats):
    """Global batch b holds the places b * 24 onward of the epoch, each sample `repeats` times in a row."""
    whole = replace(TRAIN, repeats=repeats, accumulation=accumulation)
    taken = epoch_of(whole, 2, ranks)
    turn, repetition = np.divmod(np.arange(taken.size), repeats)
    expected = (permutation(1003, 0, 2)[turn] + 1003 * repetition).reshape(taken.shape)
    assert (by_place(taken, ranks * accumulation) == expected).all()


@pytest.mark.parametrize(("ranks", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8), (3, 1), (1, 3)])
def test_copies_of_a_sample_are_in_different_micro_batches(ranks, accumulation):
    """So a rank's micro-batch has distinct images, and mixup's pairs, i with n - 1 - i, are of two images."""
    parts = ranks * accumulation
    whole = replace(TRAIN, samples=4099, batch_size=128 * parts, repeats=3, accumulation=accumulation)
    for batch in epoch_of(whole, 1, ranks):
        for micro_batch in batch.reshape(parts, 128) % 4099:
            assert len(np.unique(micro_batch)) == 128
            assert (micro_batch != micro_batch[::-1]).all()


@pytest.mark.parametrize("repeats", [1, 3])
def test_accumulation_on_one_rank_sees_what_as_many_ranks_see(repeats):
    whole = replace(TRAIN, repeats=repeats)
    eight = epoch_of(whole, 1, 8)
    assert (epoch_of(replace(whole, accumulation=8), 1, 1) == eight).all()
    assert (epoch_of(replace(whole, accumulation=2), 1, 4) == eight).all()


def test_order_without_repeats_is_pinned():
    """Whatever accumulation is: runs begun before it counted go on with the same batches."""
    order = permutation(1003, 0, 5)
    for ranks, accumulation in ((1, 1), (2, 1), (1, 4), (2, 3), (8, 1)):
        taken = epoch_of(replace(TRAIN, accumulation=accumulation), 5, ranks)
        assert (taken.ravel() == order[: taken.size]).all()


@pytest.mark.parametrize(("image_size", "crop_ratio"), [(32, 0.875), (224, 0.875), (224, 0.95), (33, 1.0), (64, 0.9)])
def test_central_geometry_is_torchvisions(image_size, crop_ratio):
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(1, 700, (40, 2)), [[375, 500], [500, 375], [32, 32], [37, 36], [1, 3]]])
    sizes = sizes[sizes.max(1) < 12 * sizes.min(1)]
    geometry = central_geometry(sizes, image_size, crop_ratio=crop_ratio)
    for row, (height, width) in enumerate(sizes.tolist()):
        resized = v2.functional.resize(torch.zeros(1, height, width), int(image_size / crop_ratio), antialias=True)
        assert tuple(geometry.size[row]) == resized.shape[1:]
        places = torch.stack(torch.meshgrid(*map(torch.arange, resized.shape[1:]), indexing="ij"))
        cropped = v2.functional.center_crop(places, [image_size, image_size])
        assert geometry.offset[row].tolist() == cropped[:, 0, 0].tolist()
        assert geometry.box[row].tolist() == [0, 0, height, width]
    assert not geometry.flip.any()


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (77, 200), (200, 77), (1, 1)])
def test_box_where_no_candidate_fits_is_torchvisions(size):
    ratio = (1.0, 1.0) if size == (1, 1) else (3 / 4, 4 / 3)
    uniform = uniforms(0, 0, Stream.CROP, np.arange(1), 22)
    box = random_crop_boxes(np.array([size]), (1.0, 1.0), ratio=ratio, uniform=uniform)[0]
    expected = v2.RandomResizedCrop(8, scale=(1, 1), ratio=ratio).make_params([torch.zeros(1, *size)])
    assert box.tolist() == [expected[key] for key in ("top", "left", "height", "width")]
