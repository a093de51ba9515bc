"""Warnings on series of real runs of experiment=digits: runs.json says which."""

import json
from pathlib import Path

import pytest

from cotnet.reporting.alerts import Alerts

RUNS = json.loads((Path(__file__).parent / "runs.json").read_text())


def records(name: str) -> list[dict]:
    return [dict(zip(RUNS["columns"][len(row) - 4], row, strict=True)) for row in RUNS[name]]


@pytest.mark.parametrize(
    ("run", "warnings"),
    [
        ("demo", {}),
        ("rate of almost nothing", {66: "hardly better than guessing, at 3 evaluations in a row, and the training"}),
        (
            "rate far too high",
            {
                44: "the loss jumped to 10.22, from a median of 3.302; look at train/grad_norm and train/lr",
                66: "top-1 is 10.03 %, hardly better than guessing, at 3 evaluations in a row, and the training",
            },
        ),
    ],
)
def test_warnings_of_real_runs(run, warnings):
    rows = records(run)
    whole = Alerts(10, rows).warnings
    assert [warning["step"] for warning in whole] == list(warnings)
    for warning, text in zip(whole, warnings.values(), strict=True):
        assert warning["message"].startswith(f"warning at step {warning['step']}: ")
        assert text in warning["message"]
        assert "\n" not in warning["message"]
    for cut in range(len(rows) + 1):  # a cut run finds the same
        resumed = Alerts(10, rows[:cut])
        printed = [line for row in rows[cut:] if (line := resumed.see(row))]
        assert resumed.warnings == whole
        assert [warning["message"] for warning in whole][len(whole) - len(printed) :] == printed


def test_a_validation_set_that_does_not_fit():
    """Training that goes well as in the demo, an accuracy that does not: val/ is suspected, at the fifth evaluation."""
    rows = [row | {key: 10.0 for key in ("val/top1", "val/top1_ema") if key in row} for row in records("demo")]
    (warning,) = Alerts(10, rows).warnings
    assert "at 5 evaluations in a row, though" in warning["message"]
    assert "look at whether val/ has train/'s classes" in warning["message"]
    late = [dict(row) for row in records("demo")]
    for row in late[-1:]:
        row |= {"val/top1": 10.0, "val/top1_ema": 10.0}
    assert Alerts(10, late).warnings == []


def test_a_spike_in_the_demo_is_found_wherever_it_is():
    rows = records("demo")
    train = [number for number, row in enumerate(rows) if "train/loss" in row]
    for number in train[5:]:
        spiked = [dict(row) for row in rows]
        spiked[number]["train/loss"] = 2.0 * rows[train[0]]["train/loss"]
        (warning,) = Alerts(10, spiked).warnings
        assert warning["step"] == rows[number]["step"]


@pytest.mark.parametrize(("classes", "top1"), [(2, 70.0), (1000, 0.9), (1, 100.0)])
def test_what_is_little_but_not_guessed(classes, top1):
    rows = [{"step": step, "val/top1": top1, "val/images": 50_000} for step in range(10)]
    assert Alerts(classes, rows).warnings == []


def test_null_and_missing_figures_are_passed_over():
    watch = Alerts(10)
    for step in range(10):
        assert watch.see({"step": step, "train/loss": None}) is None
        assert watch.see({"step": step, "val/top1": None}) is None
