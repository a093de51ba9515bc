"""What a person sees of a sweep: the bars of trials side by side, on a real terminal of a given size."""

import os
import pty
import re
import select

import pytest
from test_sweep_ledger import begin, settings

from cotnet import records
from cotnet.config.compose import to_yaml
from cotnet.sweeps.space import Trial
from cotnet.sweeps.view import View


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard output a terminal so many columns wide; the function it gives reads what was written."""
    master, slave = pty.openpty()

    def some():
        return os.read(master, 1 << 16) if select.select([master], [], [], 0)[0] else b""

    def of(columns):
        for name, value in (("TERM", "xterm"), ("COLUMNS", str(columns)), ("LINES", "24")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdout", os.fdopen(slave, "w"))
        return lambda: b"".join(iter(some, b"")).decode()

    yield of
    os.close(master)


@pytest.mark.parametrize("columns", [60, 100])
def test_bars_of_trials_side_by_side_fit_the_terminal(columns, terminal, tmp_path):
    written = terminal(columns)
    ledger = begin(tmp_path)
    trials = []
    for number, batch in enumerate((64, 128), start=1):
        given = (f"optimizer.lr_per_256=0.{number}", f"train.batch_size={batch}")
        trials.append(Trial(name=f"optimizer.lr_per_256-0.{number}__train.batch_size-{batch}", overrides=given))
        folder = tmp_path / trials[-1].name
        folder.mkdir()
        records.write_text(folder / "config.yaml", to_yaml({"train": {"epochs": 20, "max_steps": None}}))
        figures = {"step": 10, "epoch": 2.5 * number, "train/loss": 2.31234, "val/top1": 22.5632}
        records.append(folder / "metrics.jsonl", figures)
    with View(settings(parallel=2), ledger, 2) as view:
        for trial in trials:
            ledger.record(trial, "started")
            view.started(trial)
        view.refresh([(trial, tmp_path / trial.name) for trial in trials])
        shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written()))[-2:]
        ledger.record(trials[0], "finished")
        view.ended(trials[0], "finished", "", (22.5632, 5.0), 61.0)
        after = written()
    assert [line[:6] for line in shown] == ["lr_per"] * 2
    assert max(map(len, shown)) <= columns - 4, shown
    for line, epoch in zip(shown, ("2.5", "5"), strict=True):
        assert f"epoch {epoch}/20  loss 2.312  top1 22.56" in line
        assert line.count("━") + line.count("╸") + line.count("╺") >= 5
    if columns == 100:
        assert "lr_per_256=0.1 batch_size=64 " in shown[0]
    assert f"[1/2] {trials[0].name}: finished after 1:01, val/top1 22.5632 at epoch 5\r\n" in after
