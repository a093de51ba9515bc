import math
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cotnet import records
from cotnet.reporting.curves import BLUE, ORANGE, RED, _mean, draw_curves

WIDTH, HEIGHT = 1100, 700
# Left, top, right, bottom of the four plots.
LOSS, ACCURACY, RATE, SPEED = (66, 81, 519, 329), (587, 81, 1040, 329), (66, 399, 519, 647), (587, 399, 1040, 647)


def train(step: int, epoch: float, loss: float) -> dict:
    speed = {"train/images_per_second": 100.0 + step % 7, "train/data_wait": 0.05}
    return {"step": step, "epoch": epoch, "train/loss": loss, "train/lr": 0.1 / step, **speed} | {
        "train/accuracy": 90 * (1 - 1 / step),
        "train/grad_norm": 1 + 1 / step,
    }


def val(step: int, epoch: float, top1: float) -> dict:
    figures = {"top1": top1, "top5": top1 + 5, "loss": 1 / top1, "images": 357}
    return {
        "step": step,
        "epoch": epoch,
        **{f"val/{name}{kind}": v for name, v in figures.items() for kind in ("", "_ema")},
    }


def write(path: Path, rows: list[dict]) -> Path:
    for row in rows:
        records.append(path, row)
    return path


def run_of(epochs: int, steps: int) -> list[dict]:
    rows = []
    for step in range(1, epochs * steps + 1):
        rows.append(train(step, step / steps, 5 * math.exp(-step / steps) + 0.1 * (step % 5)))
        if step % steps == 0:
            rows.append(val(step, step / steps, 90 * (1 - math.exp(-step / steps))))
    return rows


def ink(png: Path, box: tuple[int, int, int, int], color: str) -> int:
    """Pixels of a colour within a plot."""
    with Image.open(png) as image:
        assert image.size == (WIDTH, HEIGHT)
        pixels = np.asarray(image.convert("RGB").crop(box)).astype(int)
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=-1) < 12).sum())


def test_every_curve_is_drawn_in_its_plot(tmp_path):
    png = tmp_path / "curves.png"
    draw_curves(write(tmp_path / "metrics.jsonl", run_of(5, 60)), png)
    assert ink(png, LOSS, BLUE) > 300
    assert ink(png, LOSS, ORANGE) > 300
    assert ink(png, ACCURACY, RED) > 300
    assert ink(png, ACCURACY, BLUE) > 300
    assert ink(png, RATE, BLUE) > 300
    assert ink(png, RATE, ORANGE) > 100
    assert ink(png, SPEED, BLUE) > 300
    assert ink(png, RATE, RED) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


@pytest.mark.slow
def test_it_is_drawn_from_the_first_record_on_and_over_gaps(tmp_path):
    metrics, png = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    for rows in ([], [val(0, 0.0, 10.0)], [train(1, 0.1, math.nan)], run_of(1, 3), [train(4, 1.3, math.inf)]):
        metrics.touch()
        draw_curves(write(metrics, rows), png)
        with Image.open(png) as image:
            assert image.size == (WIDTH, HEIGHT)


@pytest.mark.slow
def test_an_unfinished_last_line_does_not_matter(tmp_path):
    metrics = write(tmp_path / "metrics.jsonl", run_of(2, 20))
    draw_curves(metrics, tmp_path / "whole.png")
    with metrics.open("a") as file:
        file.write('{"step": 41, "ep')
    draw_curves(metrics, tmp_path / "torn.png")
    assert (tmp_path / "torn.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


@pytest.mark.long
def test_threads_draw_the_same_picture(tmp_path):
    metrics = write(tmp_path / "metrics.jsonl", run_of(3, 30))
    draw_curves(metrics, tmp_path / "alone.png")
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    threads = [threading.Thread(target=draw_curves, args=(metrics, png)) for png in pictures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {png.read_bytes() for png in pictures} == {(tmp_path / "alone.png").read_bytes()}


def test_the_mean_is_over_the_neighbours_on_both_sides():
    values = [float(at % 3) for at in range(400)]
    values[7] = math.nan
    expected = [np.nanmean(values[max(at - 4, 0) : at + 5]) for at in range(400)]
    np.testing.assert_allclose(_mean(values), expected, rtol=1e-12)
    assert _mean([1.0, 5.0]).tolist() == [1.0, 5.0]
    assert np.isnan(_mean([math.nan])).tolist() == [True]
