"""What a person sees of a sweep that runs: the bars of its trials, on a real terminal of a given size."""

import os
import pty
import re
import select

import pytest

from cotnet import records
from cotnet.config.compose import to_yaml
from cotnet.files import write_text
from cotnet.reporting.terminal import say
from cotnet.sweeps.results import bars, live_bars
from cotnet.sweeps.space import Trial


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
    running = []
    for number, batch in enumerate((64, 128), start=1):
        given = (f"optimizer.lr_per_256=0.{number}", f"train.batch_size={batch}")
        folder = tmp_path / f"optimizer.lr_per_256-0.{number}__train.batch_size-{batch}"
        running.append((Trial(name=folder.name, overrides=given), folder))
        folder.mkdir()
        write_text(folder / "config.yaml", to_yaml({"train": {"epochs": 20, "max_steps": None}}))
        figures = {"step": 10, "epoch": 2.5 * number, "train/loss": 2.31234, "val/top1": 22.5632}
        records.append(folder / "metrics.jsonl", figures)
    line = f"[1/2] {folder.name}: finished after 1:01, val/top1 22.5632 at epoch 5"
    with live_bars() as live:
        live.update(bars(running, "val/top1", width=live.console.width), refresh=True)
        shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written()))[-2:]
        say(line)
        after = written()
    assert [text[:6] for text in shown] == ["lr_per"] * 2
    assert max(map(len, shown)) <= columns - 4, shown
    for text, epoch in zip(shown, ("2.5", "5"), strict=True):
        assert f"epoch {epoch}/20  loss 2.312  top1 22.56" in text
        assert text.count("━") + text.count("╸") + text.count("╺") >= 5
    if columns == 100:
        assert "lr_per_256=0.1 batch_size=64 " in shown[0]
    assert f"{line}\r\n" in after


def test_there_are_no_bars_in_a_file(capsys):
    with live_bars() as live:
        assert live is None
