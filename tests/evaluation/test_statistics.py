"""Intervals, calibration and comparison against torchmetrics, statsmodels and scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from torchmetrics.functional.classification.calibration_error import _ce_compute

from cotnet.engine.evaluation import COLUMNS, results
from cotnet.evaluation import statistics
from cotnet.evaluation.metrics import metrics
from cotnet.evaluation.predictions import from_table

IMAGES, CLASSES = 2_000, 12


def made(seed=0, *, sharpness=2.0):
    """Logits of a classifier that is right about half the time, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=IMAGES)
    logits = rng.normal(size=(IMAGES, CLASSES))
    logits[np.arange(IMAGES), labels] += 1.5
    return sharpness * logits, labels


def predictions(scores, labels, **given):
    table = results(torch.from_numpy(scores), torch.from_numpy(labels))
    assert table.shape == (len(labels), COLUMNS)
    names = [f"{i:05d}.jpg" for i in range(len(labels))]
    return from_table(table, names, labels, **given)


def test_accuracy_and_calibration_equal_torchmetrics():
    logits, labels = made()
    found = metrics(predictions(logits, labels, logits=logits.astype(np.float32)))
    scores, targets = torch.from_numpy(logits).softmax(1), torch.from_numpy(labels)
    for name, k in (("top1", 1), ("top5", 5)):
        theirs = multiclass_accuracy(scores, targets, CLASSES, average="micro", top_k=k).double()
        assert found[name] / 100 == pytest.approx(float(theirs), abs=1e-7)  # theirs is a float32
        assert found[name] * IMAGES / 100 == round(float(theirs) * IMAGES)
    confidence = scores.max(1).values
    edges = torch.linspace(0, 1, 16, dtype=torch.float64)
    assert (confidence[:, None] - edges).abs().min() > 1e-9  # no confidence on an edge: rules differ there
    right = (scores.argmax(1) == targets).double()
    theirs = _ce_compute(confidence, right, edges, norm="l1")  # its public function rounds to float32 first
    assert found["ece"] == pytest.approx(float(theirs), abs=1e-9)
    rounded = multiclass_calibration_error(scores, targets, CLASSES, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(float(rounded), abs=1e-6)
    onehot = torch.nn.functional.one_hot(targets, CLASSES)
    assert found["brier"] == pytest.approx(float(((scores - onehot) ** 2).sum(1).mean()), abs=1e-9)
    nll = torch.nn.functional.cross_entropy(torch.from_numpy(logits), targets)
    assert found["nll"] == found["loss"] == pytest.approx(float(nll), abs=1e-9)


def test_calibration_by_hand():
    confidence, correct = np.array([0.05, 0.05, 0.5, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    expected = (2 * abs(0.05 - 0.5) + 0.5 + 0.0) / 4  # bins 0, 7 and the last one, which holds 1
    assert statistics.expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)
    assert statistics.adaptive_calibration_error(confidence, correct) == pytest.approx(
        (0.05 + 0.95 + 0.5 + 0.0) / 4, abs=1e-12
    )
    logits = np.log(np.array([[0.7, 0.3], [0.2, 0.8]], dtype=np.float32))
    # class 0: |0.7 - 1|/2 + |0.2 - 0|/2, class 1: |0.3 - 0|/2 + |0.8 - 1|/2
    assert statistics.classwise_calibration_error(logits, np.array([0, 1])) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize(("correct", "images"), [(40_649, 50_000), (0, 50), (50, 50), (37, 50), (1, 3)])
def test_wilson_equals_statsmodels(correct, images):
    theirs = proportion_confint(correct, images, alpha=0.05, method="wilson")
    assert statistics.wilson(correct, images) == pytest.approx([100 * bound for bound in theirs], abs=1e-9)


def test_paired_difference_equals_statsmodels():
    rng = np.random.default_rng(1)
    a, b = rng.random(5_000) < 0.8, rng.random(5_000) < 0.78
    b[:4_000] = a[:4_000]
    found = statistics.paired_difference(a, b)
    table = [[int((x & y).sum()) for y in (b, ~b)] for x in (a, ~a)]
    assert (found.only_a, found.only_b) == (table[0][1], table[1][0])
    assert found.p_value == pytest.approx(float(mcnemar(table, exact=True).pvalue), rel=1e-9)
    paired = a.astype(float) - b
    half = 1.959963984540054 * paired.std() / np.sqrt(len(a))
    expected = 100 * np.array([paired.mean(), paired.mean() - half, paired.mean() + half])
    assert [found.difference, found.low, found.high] == pytest.approx(expected, abs=1e-9)
    chi = (abs(found.only_a - found.only_b) - 1) ** 2 / (found.only_a + found.only_b)
    assert found.p_value == pytest.approx(chi2.sf(chi, 1), abs=0.01)
    assert statistics.paired_difference(a, a) == (0, 0, 0, 1.0, 0, 0)


def test_temperature_undoes_a_scale():
    """Logits that are calibrated but for a factor: the factor comes back, and the error of the held-out half falls."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(20_000, CLASSES)) * 1.5
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    labels = (shares.cumsum(1) > rng.random((len(logits), 1))).argmax(1)
    assert statistics.fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    found = metrics(predictions(3 * logits, labels, logits=(3 * logits).astype(np.float32)))
    held_out = found["held_out"]
    assert found["temperature"] == pytest.approx(3, rel=0.08)
    assert held_out["ece_after"] < held_out["ece_before"] / 5
    assert held_out["nll_after"] < held_out["nll_before"]
    assert 0.4 < held_out["images"] / len(logits) < 0.6


def test_no_temperature_where_every_image_is_right():
    """The loss then falls for ever with the temperature."""
    assert statistics.fit_temperature(np.eye(6) * 2, np.arange(6)) is None
    found = metrics(
        predictions(np.eye(12)[np.arange(60) % 12], np.arange(60) % 12, logits=np.eye(12)[np.arange(60) % 12])
    )
    assert found["temperature"] is None and found["held_out"] is None and found["top1"] == 100


def test_bootstrap_finds_the_interval_of_a_mean():
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, 3_000), rng.normal(0, 1, 3_000)
    low, high = statistics.bootstrap_difference(lambda x, _: float(x.mean()), (a, a), (b, b))
    half = 1.96 * (a - b).std() / np.sqrt(len(a))
    assert [low, high] == pytest.approx([(a - b).mean() - half, (a - b).mean() + half], abs=0.012)
    again = statistics.bootstrap_difference(lambda x, _: float(x.mean()), (a, a), (b, b))
    assert again == (low, high)
