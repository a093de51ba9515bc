"""Wrong command lines of a sweep are one line each."""

import pytest

from cotnet import sweep


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lrr=1,2"], "error: optimizer.lrr is not a setting; did you mean optimizer.lr?"),
        (["seed=1,2", "logger=none"], "error: logger=none in a W&B sweep"),
        (["optimizer.lr=interval(0.1,1)"], "error: optimizer.lr: a grid cannot visit every number of an interval; "),
        (["sweep=tpe"], "error: sweep.sampler=tpe has nothing to vary"),
        (["sweep.seed=1,2"], "error: sweep.seed is the sweep's own; give it one value"),
        (["sweep=tpe", "seed=tag(log,int(interval(1,9)))"], "error: seed: W&B has no logarithmic range of integers"),
        (["seed=1,2", "backbone=cotnet50,cotnet51"], "error: backbone=cotnet51 is unknown; did you mean cotnet50"),
    ],
)
def test_bad_spaces_are_one_line(overrides, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep", "--export", str(tmp_path / "w.yaml"), "data=digits", *overrides])
    with pytest.raises(SystemExit) as end:
        sweep.main()
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(message)
    assert line.count("\n") == 1
    assert not (tmp_path / "w.yaml").exists()
