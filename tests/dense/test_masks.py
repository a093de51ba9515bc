"""Masks drawn by faster-coco-eval, against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as oracle

from cotnet.dense.masks import drawn

RNG = np.random.default_rng(0)
SIZE = (48, 60)


def random_masks():
    yield np.zeros(SIZE, np.uint8)
    yield np.ones(SIZE, np.uint8)
    for density in (0.02, 0.5, 0.98):
        yield (RNG.random(SIZE) < density).astype(np.uint8)
    for top, left, high, wide in ((0, 0, 5, 7), (40, 50, 8, 10), (0, 20, 48, 3), (7, 0, 1, 60), (20, 30, 1, 1)):
        mask = np.zeros(SIZE, np.uint8)
        mask[top : top + high, left : left + wide] = 1
        yield mask


@pytest.mark.parametrize("mask", [*random_masks()])
def test_run_lengths_are_drawn_as_pycocotools_wrote_them(mask):
    packed = oracle.encode(np.asfortranarray(mask))
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=2))
    plain = {"size": [*SIZE], "counts": np.diff(changes, prepend=0).tolist()}
    for outline in (packed, {**packed, "counts": packed["counts"].decode()}, plain):
        found = drawn(outline, SIZE)
        assert found.dtype == np.uint8 and np.array_equal(found, mask)


def test_polygons_are_drawn_as_pycocotools_draws_them():
    polygons = [(RNG.uniform(-5, 65, 2 * corners)).tolist() for corners in (3, 4, 7)]
    expected = oracle.decode(oracle.merge(oracle.frPyObjects(polygons, *SIZE)))
    assert np.array_equal(drawn(polygons, SIZE), expected) and 0 < expected.sum() < expected.size


@pytest.mark.parametrize("counts", ["", "zzzz", "1P", "é1", "00", "O0", "P" * 12 + "0", "oooo1"])
def test_damaged_run_lengths(counts):
    """No characters, too few pixels, a last character that says that more follow, no character of the code, runs of
    nothing, a negative run, a run of more pixels than any image has."""
    with pytest.raises((ValueError, RuntimeError)):
        drawn({"size": [*SIZE], "counts": counts}, SIZE)
