"""Every figure of an evaluation, computed from its table of predictions."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from cotnet.evaluation import statistics
from cotnet.evaluation.predictions import Predictions

CONFUSED: Final = 3  # most confused classes of each class in per_class.csv
PER_CLASS: Final = (
    *("class", "words", "images", "correct", "top1", "top1_low", "top1_high", "top5"),
    *(f"confused{place}" for place in range(1, CONFUSED + 1)),
)
CONFUSIONS: Final = ("label", "predicted", "images", "share", "label_words", "predicted_words")


def metrics(predictions: Predictions) -> dict[str, Any]:
    """Accuracy in percent with 95 % intervals, and calibration; None for what the labels or the memory do not allow.

    `temperature` is fitted on one half of the images; the figures after it are of the other half (`held_out`).
    """
    hits, confidence = predictions.hits, predictions.confidence
    images = len(hits)
    top1, top5 = int(hits[:, 0].sum()), int(hits.any(axis=1).sum())
    correct = hits[:, 0].astype(np.float64)
    nll = _mean(predictions.loss)
    calibrated: dict[str, Any] = {"classwise_ece": None, "temperature": None, "held_out": None}
    if predictions.logits is not None and predictions.targets is not None:
        classwise = statistics.classwise_calibration_error(predictions.logits, predictions.targets)
        calibrated = {"classwise_ece": classwise, **_temperature(predictions)}
    return {
        "top1": 100 * top1 / images,
        "top5": 100 * top5 / images,
        "loss": nll,
        "images": images,
        "top1_interval": statistics.wilson(top1, images),
        "top5_interval": statistics.wilson(top5, images),
        "ece": statistics.expected_calibration_error(confidence, correct),
        "adaptive_ece": statistics.adaptive_calibration_error(confidence, correct),
        "brier": _mean(predictions.brier),
        "nll": nll,
        **calibrated,
        "reliability": [
            {"images": int(count), "confidence": mean, "accuracy": share}
            for count, mean, share in statistics.calibration_bins(confidence, correct).tolist()
        ],
    }


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).any() else math.fsum(values.tolist()) / len(values)


def _temperature(predictions: Predictions) -> dict[str, Any]:
    fitting = statistics.in_first_half(predictions.files)
    logits, labels = predictions.logits, predictions.targets
    assert logits is not None and labels is not None
    if fitting.all() or not fitting.any():
        return {"temperature": None, "held_out": None}
    temperature = statistics.fit_temperature(logits[fitting], labels[fitting])
    if temperature is None:
        return {"temperature": None, "held_out": None}
    others, names = predictions.rows(~fitting), ("before", "after")
    figures: dict[str, float] = {}
    for name, scale in zip(names, (1.0, temperature), strict=True):
        scaled = logits[~fitting].astype(np.float64) / scale
        loss = statistics.negative_log_likelihood(scaled, labels[~fitting])
        best = scaled.max(axis=1)
        confidence = 1 / np.exp(scaled - best[:, None]).sum(axis=1)
        figures[f"ece_{name}"] = statistics.expected_calibration_error(confidence, others.correct.astype(np.float64))
        figures[f"nll_{name}"] = float(loss.mean())
    return {"temperature": temperature, "held_out": {"images": int((~fitting).sum()), **figures}}


def per_class(predictions: Predictions, classes: Sequence[str], words: Sequence[str]) -> Iterator[list[Any]]:
    """Rows of per_class.csv: a class's accuracy with its interval, and the classes it is taken for."""
    hits = predictions.hits
    for number in np.unique(predictions.labels).tolist():
        own = predictions.labels == number
        images, top1 = int(own.sum()), int(hits[own, 0].sum())
        low, high = statistics.wilson(top1, images)
        wrong = Counter(predictions.best[own & ~hits[:, 0], 0].tolist()).most_common(CONFUSED)
        taken = [f"{words[one]} ({count})" for one, count in wrong] + [None] * (CONFUSED - len(wrong))
        shares = (100 * top1 / images, low, high, statistics.percent(hits[own].any(axis=1)))
        yield [classes[number], words[number], images, top1, *shares, *taken]


def confusions(predictions: Predictions, classes: Sequence[str], words: Sequence[str]) -> Iterator[list[Any]]:
    """Rows of confusions.csv: pairs of label and another class predicted for it, the most frequent first."""
    wrong = ~predictions.correct
    pairs = Counter(zip(predictions.labels[wrong].tolist(), predictions.best[wrong, 0].tolist(), strict=True))
    totals = Counter(predictions.labels.tolist())
    for (label, other), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        share = count / totals[label]
        yield [classes[label], classes[other], count, share, words[label], words[other]]
