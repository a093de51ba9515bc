"""What a person sees of results, by value: order, table, plot, command, refusals."""

import json

import numpy as np
import pytest
from matplotlib import colors, image

from cotnet.errors import InputError
from cotnet.reporting.curves import BLUE, RED
from cotnet.sweeps import results
from cotnet.sweeps.space import Trial

from .by_hand import begin, finish


def to_rgb(color):
    return (np.array(colors.to_rgb(color)) * 255).round().astype(int)


def test_results_are_sorted_and_explained(tmp_path, capsys):
    ledger = begin(tmp_path)
    for index, top1 in enumerate(([40.0, 30.0], [10.0, 60.5], [20.0]), start=1):
        finish(ledger, Trial(name=f"a-{index}", overrides=(f"a={index}", "train.epochs=2")), top1)
    failed = Trial(name="a-4", overrides=("a=4", "train.epochs=2"))
    ledger.record(failed, "started")
    ledger.record(failed, "failed", seconds=1.0, code=1, line="the loss is not finite")
    running = Trial(name="a-5", overrides=("a=5", "train.epochs=2"))
    ledger.record(running, "started")
    rows = results.rank_trials(ledger)
    assert [(row.entry.trial.name, row.value, row.epoch) for row in rows[:3]] == [
        ("a-2", 60.5, 2.0),
        ("a-1", 40.0, 1.0),
        ("a-3", 20.0, 1.0),
    ]
    results.show(tmp_path)
    out = capsys.readouterr().out
    assert "failed: the loss is not finite" in out
    assert "killed" in out  # it began and nobody holds the folder
    assert "python train.py experiment=digits a=2 train.epochs=6\n" in out
    picture = (image.imread(tmp_path / "sweep.png")[..., :3] * 255).round().astype(int)
    counts = {color: int((abs(picture - to_rgb(color)).max(axis=-1) <= 2).sum()) for color in (RED, BLUE)}
    assert counts[RED] > 10
    assert counts[BLUE] == pytest.approx(2 * counts[RED], rel=0.3)  # one best of three finished trials
    ledger.start |= {"direction": "minimize"}
    assert [row.value for row in results.rank_trials(ledger)[:3]] == [10.0, 20.0, 30.0]
    ledger.start |= {"target": "val/topp1"}
    with pytest.raises(InputError) as error:
        results.rank_trials(ledger)
    assert str(error.value) == "sweep.target=val/topp1 is logged by no trial; did you mean val/top1?"


def test_a_column_of_text_and_one_of_numbers_are_drawn(tmp_path):
    ledger = begin(tmp_path)
    for b, lr, top1 in (("x", "0.001", 10.0), ("y", "1", 30.0), ("null", "0.1", 20.0)):
        finish(ledger, Trial(name=f"{b}-{lr}", overrides=(f"b={b}", f"lr={lr}", "seed=1")), [top1])
    panels = results.draw(tmp_path / "sweep.png", "val/top1", results.rank_trials(ledger)).axes
    assert [panel.get_xlabel() for panel in panels] == ["b", "lr"]
    assert [panel.get_xscale() for panel in panels] == ["linear", "log"]
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["x", "null", "y"]
    assert panels[1].collections[0].get_offsets().tolist() == [[0.001, 10.0], [0.1, 20.0], [1.0, 30.0]]


def test_the_table_of_evaluations_is_sorted_by_accuracy(tmp_path, capsys):
    figures = {"top1": 71.234, "top5": 90.1, "images_per_second": 1234.5}
    for name, change in (("a", {}), ("b", {"top1": 75.0})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(figures | change))
    results.print_evaluations({tmp_path / "c [x]": 2, tmp_path / "a": 0, tmp_path / "b": 0})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert [line.split() for line in out.splitlines() if line.strip() and "─" not in line] == [
        ["top-1", "%", "top-5", "%", "images/s", "status", "folder"],
        ["75.00", "90.10", "1,234", "finished", str(tmp_path / "b")],
        ["71.23", "90.10", "1,234", "finished", str(tmp_path / "a")],
        ["-", "-", "-", "failed", str(tmp_path / "c"), "[x]"],
    ]
