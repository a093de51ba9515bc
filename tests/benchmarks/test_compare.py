"""The comparison of trained runs: values by hand and by tables, and a line for what does not fit."""

import json
import math

import pytest
from programs import make_digits, run

from cotnet.benchmarks.compare import RunGroup, comparison, half_interval, main, read_run


def group(name, *last, speed=None, images=10_000):
    runs = [[{"epoch": 3.0, "images": 6000, "val/top1_ema": value, "val/images": images}] for value in last]
    return RunGroup(name=name, runs=runs, speed=speed)


def test_intervals_by_hand():
    one, other = group("a", 93.0, 93.2, 93.4), group("b", 92.0, 92.4, 92.8)
    half, over = half_interval([one], 10_000)
    assert (half, over) == (pytest.approx(4.303 * 0.2 / math.sqrt(3), rel=1e-3), "seeds")
    half, over = half_interval([one, other], 10_000)  # squares 0.08 and 0.32 over 4 degrees of freedom
    assert (half, over) == (pytest.approx(2.776 * math.sqrt(0.1 * 2 / 3), rel=1e-3), "seeds")
    half, over = half_interval([group("a", 93.0)], 10_000)
    assert (half, over) == (pytest.approx(100 * 1.96 * math.sqrt(0.93 * 0.07 / 10_000)), "images")
    half, over = half_interval([one, group("b", 90.0)], 400)
    assert (half, over) == (pytest.approx(196 * math.sqrt((0.932 * 0.068 + 0.09) / 400)), "images")


def test_the_table_compares_with_the_first():
    first, second = comparison([group("a", 93.0, 93.2, speed=50.0), group("b", 92.0, 92.4)])
    assert "difference" not in first
    assert (first["top1"], first["minutes"], second["minutes"]) == (pytest.approx(93.1), 2.0, None)
    assert (second["difference"], second["over"]) == (pytest.approx(-0.9), "seeds")


def write(path, epochs, last):
    rows = [{"step": 1, "epoch": 0.1, "train/loss": 2.0}]
    rows += [
        {"step": 10 * n, "epoch": float(n), "val/top1_ema": last - epochs + n, "val/images": 100}
        for n in range(1, epochs + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_as_a_person_runs_it(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    one, other = write(tmp_path / "run" / "metrics.jsonl", 2, 90.0), write(tmp_path / "b.jsonl", 2, 80.0)
    assert [row["images"] for row in read_run(tmp_path / "run", 128)] == [1280, 2560]
    plot = tmp_path / "plots" / "curves.png"
    speeds = ["--speed", "cot", "4", "--speed", "plain", "8"]
    runs = ["--runs", "cot", str(tmp_path / "run"), "--runs", "plain", other]
    main([*runs, *speeds, "--plot", str(plot)])
    assert "-10 " in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    short = write(tmp_path / "short.jsonl", 1, 90.0)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"step": 1, "epoch": 0.1, "train/loss": 2.0}\n')
    for arguments, line in (
        (["--runs", "cot"], "--runs cot: no runs; give NAME and run folders or metrics.jsonl files"),
        (["--runs", "cot", one, short], "--runs cot: runs of different lengths; give those as another name"),
        (["--runs", "cot", "nowhere"], "nowhere: no such file; give run folders or their metrics.jsonl"),
        (["--runs", "cot", str(empty)], f"{empty} holds no val/top1_ema; give a run with an epoch behind it"),
        ([*runs, "--speed", "cto", "4"], "--speed cto: no --runs of this name; there are cot, plain"),
        ([*runs, "--speed", "cot", "0"], "--speed cot 0: not a number of images per second"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert (end.value.code, capsys.readouterr().err) == (2, f"error: {line}\n")


@pytest.mark.slow
@pytest.mark.long
def test_the_recipe_and_its_twin_train_and_compare(tmp_path, capsys):
    make_digits(tmp_path / "d", train=2, val=1)
    recipe = ["experiment=fashion_mnist", "data.root=d", "logger=none", "loader.threads=1", "train.precision=fp32"]
    short = ["train.batch_size=10", "train.epochs=2", "train.max_steps=4"]
    run("train.py", *recipe, *short, "backbone.fusion=linear", "output_dir=cot", cwd=tmp_path)
    run("train.py", *recipe, *short, "backbone=resnet_small", "backbone.width=15", "output_dir=plain", cwd=tmp_path)
    runs = ["--runs", "cot", str(tmp_path / "cot"), "--runs", "plain", str(tmp_path / "plain")]
    main([*runs, "--batch-size", "10"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines if line and line[0] in ("cot", "plain")] == [
        ["cot", "1", "2"],
        ["plain", "1", "2"],
    ]
