"""Masks as parts, against pycocotools and against whole maps."""

import numpy as np
import pytest
from pycocotools import mask as oracle

from cotnet.dense.masks import part_of, resampled, run_lengths, whole

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
def test_run_lengths_are_read_as_pycocotools_reads_them(mask):
    counts = oracle.encode(np.asfortranarray(mask))["counts"]
    assert run_lengths(counts).sum() == mask.size and run_lengths(counts)[1::2].sum() == mask.sum()
    part = part_of(counts.decode(), SIZE)
    assert np.array_equal(whole([part], SIZE)[0], mask)
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    tight = (rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1) if len(rows) else (0, 0, 0, 0)
    assert (part.top, part.left, *part.pixels.shape) == tight


def test_runs_of_a_large_image():
    mask = np.zeros((5000, 7000), np.uint8)
    mask[4990:, 6000:6003] = mask[3, 6990] = 1
    part = part_of(oracle.encode(np.asfortranarray(mask))["counts"], mask.shape)
    assert (part.top, part.left, part.pixels.shape) == (3, 6000, (4997, 991)) and part.pixels.sum() == 31


@pytest.mark.parametrize("flip", [1, -1])
def test_resampling_parts_is_resampling_the_whole(flip):
    for mask in random_masks():
        part = part_of(oracle.encode(np.asfortranarray(mask))["counts"], SIZE)
        for rows, columns in ((np.arange(90) * 48 // 90, np.arange(80) * 60 // 80), (np.arange(5, 40, 7), [3, 20, 44])):
            lines = rows, np.asarray(columns)[::flip]
            found = whole([resampled(part, *lines)], (len(rows), len(columns)))[0]
            assert np.array_equal(found, mask[lines[0]][:, lines[1]])


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ("", "no compressed"),
        ("zzzz", "no compressed"),
        ("1P", "no compressed"),  # the last character says that more follow
        ("é1", "no compressed"),
        ("00", "do not fill"),
        ("O0", "do not fill"),  # a run of -1
        ("P" * 12 + "0", "more pixels"),
    ],
)
def test_damaged_run_lengths(counts, line):
    with pytest.raises(ValueError, match=line):
        part_of(counts, SIZE)
