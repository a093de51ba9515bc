import numpy as np
import pytest
from scipy import stats

from data.loading.random import BETA_DRAWS, Stream, beta, hashes, normals, uniforms

GAMMA, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def splitmix(bits):
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def test_hashes_are_the_written_down_function():
    """In Python's own integers: a change here changes every run there is."""
    key = 0
    for part in (7, 3, int(Stream.CROP), 123456):
        key = splitmix((key + part + GAMMA) & MASK)
    assert hashes(7, 3, Stream.CROP, np.array([123456]))[0] == key
    expected = [(splitmix((key + counter * GAMMA) & MASK) >> 11) / 2**53 for counter in (1, 2, 3)]
    assert uniforms(7, 3, Stream.CROP, np.array([123456]), 3)[0].tolist() == expected


def test_known_values():
    assert uniforms(0, 0, Stream.ORDER, np.array([0, -1]), 1)[:, 0].tolist() == [0.9686768562358347, 0.9705782175130928]


def test_hashes_have_no_collision():
    assert len(np.unique(hashes(0, 0, Stream.ORDER, np.arange(300_000)))) == 300_000


@pytest.mark.parametrize("other", [(1, 0, Stream.CROP), (0, 1, Stream.CROP), (0, 0, Stream.FLIP)])
def test_uniform_and_independent_of_every_part_of_the_key(other):
    samples = np.arange(20_000)
    first, second = (uniforms(*key, samples, 4) for key in ((0, 0, Stream.CROP), other))
    assert stats.kstest(first.ravel(), "uniform").pvalue > 1e-3
    correlation = np.corrcoef(np.concatenate([first, second, np.roll(first, 1, axis=0)], axis=1).T)
    assert np.abs(correlation - np.eye(12)).max() < 0.03


def test_normals():
    drawn = normals(uniforms(0, 0, Stream.NOISE, np.arange(10_000), 4))
    assert drawn.shape == (10_000, 2)
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_beta(alpha):
    drawn = beta(alpha, uniforms(0, 0, Stream.MIX, np.arange(20_000), BETA_DRAWS))
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
