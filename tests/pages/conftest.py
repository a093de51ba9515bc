"""Evaluations that the tests of pages share."""

import csv
import json
import shutil

import pytest
from programs import once, run

from cotnet import compare
from cotnet.evaluation import metrics, predictions


def answer_otherwise(folder):
    """Turns the first 3 wrong predictions of an evaluation into right ones and the first 2 right ones into wrong ones,
    in predictions.csv and per_class.csv."""
    path = folder / "predictions.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wrong, right = ([row for row in rows if row["correct"] == one] for one in "01")
    for row in wrong[:3]:
        row |= {"top1": row["label"], "correct": "1"}
    for row in right[:2]:
        row |= {"top1": str((int(row["label"]) + 1) % 10), "correct": "0"}
    predictions.write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
    names = [str(number) for number in range(10)]
    table = metrics.per_class(predictions.read(path), names, names)
    predictions.write_csv(folder / "per_class.csv", metrics.PER_CLASS, table)


@pytest.fixture(scope="session")
def evaluated(shared, uncut):
    """Folders `ema`, an evaluation, and `other`, the same with 5 other answers; `ema` also holds their comparison."""

    def make(folder):
        given = [f"checkpoint={uncut(1)}/checkpoints/last.pt", "output_dir=ema"]
        run("evaluate.py", *given, cwd=folder)
        answer_otherwise(shutil.copytree(folder / "ema", folder / "other"))
        compare.main([str(folder / "ema"), str(folder / "other")])
        (found,) = json.loads((folder / "ema" / "comparison.json").read_text())["comparisons"]
        assert len(found["flipped"]) == 5

    return once(shared, "evaluated", make)
