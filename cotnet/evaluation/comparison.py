"""Two evaluations of the same images: what differs, and whether images alone could explain it."""

from typing import Any, Final

import numpy as np

from cotnet.errors import InputError
from cotnet.evaluation.predictions import Predictions
from cotnet.evaluation.statistics import bootstrap_difference, expected_calibration_error, paired_difference, percent

INTERVALS_ARE: Final = (
    "over images: what another sample of images would change; two trainings of one recipe differ as well"
)


def compare(a: Predictions, b: Predictions, names: tuple[str, str]) -> dict[str, Any]:
    """comparison.json: A minus B. Accuracies in percentage points, with McNemar's exact test; ECE and NLL with a paired
    bootstrap.

    Raises:
        InputError: the tables are of different images, or have different labels.
    """
    b = _aligned(a, b, names)
    figures: dict[str, Any] = {"a": names[0], "b": names[1], "images": len(a.files), "intervals": INTERVALS_ARE}
    for name, of_a, of_b in (
        ("top1", a.correct, b.correct),
        ("top5", a.in_best, b.in_best),
    ):
        found = paired_difference(of_a, of_b)
        figures[name] = {
            "a": percent(of_a),
            "b": percent(of_b),
            "difference": found.difference,
            "interval": [found.low, found.high],
            "mcnemar_p": found.p_value,
            "only_a_right": found.only_a,
            "only_b_right": found.only_b,
        }
    pairs = [(one.confidence, one.correct.astype(np.float64)) for one in (a, b)]
    figures["ece"] = _bootstrapped(expected_calibration_error, *pairs)
    if not (np.isnan(a.loss).any() or np.isnan(b.loss).any()):
        figures["nll"] = _bootstrapped(lambda loss, _: float(loss.mean()), (a.loss, a.loss), (b.loss, b.loss))
    flipped = a.correct != b.correct
    figures["flipped"] = [
        {"file": a.files[row], "label": int(a.labels[row]), "right": "a" if a.correct[row] else "b",
         "top1_a": int(a.best[row, 0]), "top1_b": int(b.best[row, 0])}
        for row in np.flatnonzero(flipped)
    ]  # fmt: skip
    return figures


def _bootstrapped(figure: Any, a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    of_a, of_b = figure(*a), figure(*b)
    return {"a": of_a, "b": of_b, "difference": of_a - of_b, "interval": list(bootstrap_difference(figure, a, b))}


def _aligned(a: Predictions, b: Predictions, names: tuple[str, str]) -> Predictions:
    """B in A's order of files."""
    where = {file: row for row, file in enumerate(b.files)}
    only_a = [file for file in a.files if file not in where]
    only_b = sorted(set(b.files) - set(a.files))
    if only_a or only_b:
        counts = "; ".join(
            f"only in {name}: {len(only)} ({', '.join(only[:3])})"
            for name, only in zip(names, (only_a, only_b), strict=True)
            if only
        )
        raise InputError(f"these are evaluations of different images ({counts}); compare evaluations of one set")
    b = b.rows(np.array([where[file] for file in a.files], dtype=np.int64))
    other = np.flatnonzero(a.labels != b.labels)
    if len(other):
        file = a.files[other[0]]
        raise InputError(
            f"{len(other)} images have other labels in {names[1]} than in {names[0]} (first: {file}); "
            "compare evaluations with one order of classes"
        )
    return b


def line(figures: dict[str, Any]) -> str:
    """The comparison in one line."""
    top1 = figures["top1"]
    low, high = top1["interval"]
    return (
        f"{figures['a']} - {figures['b']}: top-1 {top1['difference']:+.2f} points (95 % interval {low:+.2f} to "
        f"{high:+.2f} over {figures['images']} images, McNemar p = {top1['mcnemar_p']:.2g}); "
        f"{top1['only_a_right']} images only the first has right, {top1['only_b_right']} only the second"
    )
