"""Intervals, calibration and paired comparison, from arrays with a row per image. Everything is float64.

Intervals are over images: another sample of images from the same source. Two trainings with other seeds differ too.
SciPy is imported where it is used: it takes a second, and every rank of a training imports this module.
"""

import hashlib
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import torch

BINS: Final = 15
_CONFIDENCE: Final = 0.95


def percent(right: np.ndarray) -> float:
    """The share of true values in percent."""
    return 100 * int(right.sum()) / len(right)


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2)
    share, weight = correct / images, z * z / images
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt((share * (1 - share) + weight / 4) / images) / (1 + weight)
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(BINS, 3): images, mean confidence and accuracy of each bin of equal width; zeros for an empty bin.

    A bin holds [low, high), the last one also 1.
    """
    edges = np.linspace(0, 1, BINS + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, BINS - 1)
    count = np.bincount(which, minlength=BINS)
    sums = [np.bincount(which, weights=values, minlength=BINS) for values in (confidence, correct)]
    return np.stack([count, *(total / np.maximum(count, 1) for total in sums)], axis=1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """ECE: the mean gap between confidence and accuracy over 15 bins of equal width (Naeini et al. 2015)."""
    count, mean, accuracy = calibration_bins(confidence, correct).T
    return float((count * np.abs(mean - accuracy)).sum() / len(confidence))


def adaptive_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The same over 15 bins of equal image counts (Nguyen and O'Connor 2015)."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [len(part) * abs(confidence[part].mean() - correct[part].mean()) for part in parts]
    return float(sum(gaps) / len(confidence))


def classwise_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the ECE of that class's probability (Kull et al. 2019). logits (N, C), labels (N,)."""
    from scipy.special import logsumexp

    normaliser = logsumexp(logits.astype(np.float64), axis=1)
    errors = [
        expected_calibration_error(np.exp(logits[:, number] - normaliser), (labels == number).astype(np.float64))
        for number in range(logits.shape[1])
    ]
    return float(np.mean(errors))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The T from 0.05 to 20 that minimises the NLL of logits / T (Guo et al. 2017). logits (N, C), labels (N,). None if
    the minimum lies elsewhere, as where every image is right.

    The NLL is convex in 1 / T; its slope there is the mean of the expected logit minus the label's.
    """
    from scipy.optimize import brentq

    scores = torch.from_numpy(logits)
    own = scores[torch.arange(len(scores)), torch.from_numpy(labels)]

    def slope(inverse: float) -> float:
        expected = (scores * (inverse * scores).softmax(1)).sum(1)
        return float((expected - own).double().mean())

    least, most = 1 / 20, 20.0
    if slope(least) >= 0 or slope(most) <= 0:
        return None
    return 1 / float(brentq(slope, least, most, xtol=1e-5))


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) cross-entropy of logits (N, C)."""
    from scipy.special import logsumexp

    wide = logits.astype(np.float64)
    return logsumexp(wide, axis=1) - wide[np.arange(len(wide)), labels]


def in_first_half(names: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: which images fit the temperature; the others give its figures. By a hash of the file name."""
    return np.array([hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=1).digest()[0] < 128
                     for name in names])  # fmt: skip


class Difference(NamedTuple):
    """A minus B in percentage points over the same images."""

    difference: float
    low: float
    high: float
    p_value: float
    only_a: int  # images that only A has right
    only_b: int


def paired_difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """The difference of two accuracies, its 95 % interval (Wald, paired) and the exact p-value of McNemar's test.

    a, b: (N,) bool, whether each image is right.
    """
    from scipy.stats import binomtest, norm

    only_a, only_b, images = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    changed, difference = only_a + only_b, (only_a - only_b) / images
    half = norm.ppf(0.5 + _CONFIDENCE / 2) * np.sqrt(changed - (only_a - only_b) ** 2 / images) / images
    p_value = float(binomtest(only_a, changed).pvalue) if changed else 1.0
    low, high = 100 * (difference - half), 100 * (difference + half)
    return Difference(100 * difference, float(low), float(high), p_value, only_a, only_b)


def bootstrap_difference(
    figure: Callable[[np.ndarray, np.ndarray], float],
    a: tuple[np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray],
    *,
    resamples: int = 1000,
) -> tuple[float, float]:
    """The 95 % interval of figure(*a) - figure(*b), for figures that are not counts.

    The same images are drawn for both; the draws depend on the number of images alone.
    """
    images = len(a[0])
    draws = np.random.Generator(np.random.Philox(images))
    differences = []
    for _ in range(resamples):
        rows = draws.integers(images, size=images)
        differences.append(figure(*(values[rows] for values in a)) - figure(*(values[rows] for values in b)))
    low, high = np.quantile(differences, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)
