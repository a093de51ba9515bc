"""What the pages hold is what the files say."""

import json
import re
import shutil

import pytest
from programs import SMALL, metrics, run
from sweeps.by_hand import begin, finish

from cotnet.errors import InputError
from cotnet.evaluation import predictions
from cotnet.pages.blocks import Chart, Command, DataTable, Gallery, Remarks, Tiles
from cotnet.pages.comparison_page import comparison_page
from cotnet.pages.evaluation_page import evaluation_page
from cotnet.pages.folders import write_reports
from cotnet.pages.read import read_csv
from cotnet.pages.run_page import run_page
from cotnet.pages.sweep_page import sweep_page
from cotnet.sweeps.space import Trial

pytestmark = pytest.mark.slow


def blocks(page, kind):
    return [block for section in page.sections for block in section.blocks if isinstance(block, kind)]


def named(page, kind, title):
    (found,) = [block for block in blocks(page, kind) if block.title == title]
    return found


def tiles(page):
    return {tile.name: tile for block in blocks(page, Tiles) for tile in block.tiles}


def points(chart, series):
    rows = chart.spec["layer"][0]["data"]["values"]
    return [(row["x"], row["y"]) for row in rows if row["series"] == series]


def test_a_run(uncut):
    folder = uncut(1)
    page, rows = run_page(folder), metrics(folder, timings=True)
    assert (page.kind, page.status, page.refresh) == ("run", "finished", None)
    drawn = {
        "Loss": {"train": "train/loss", "val": "val/loss", "val, EMA": "val/loss_ema"},
        "Top-1 accuracy": {"train": "train/accuracy", "val": "val/top1", "val, EMA": "val/top1_ema"},
        "Learning rate": {"learning rate": "train/lr"},
        "Norm of the gradient": {"norm": "train/grad_norm"},
        "Speed": {"images/s": "train/images_per_second"},
        "Time spent waiting for data": {"share": "train/data_wait"},
    }
    for title, keys in drawn.items():
        for series, key in keys.items():
            expected = [(row["epoch"], row[key]) for row in rows if key in row]
            assert expected and points(named(page, Chart, title), series) == expected
    summary = json.loads((folder / "summary.json").read_text())
    assert tiles(page)["best top-1"].value == f"{summary['best_top1']:.2f} %"
    low, high = map(float, re.findall(r"[\d.]+", tiles(page)["best top-1"].note)[:2])
    assert low < summary["best_top1"] < high
    changed = {row[0]: row[1:] for row in named(page, DataTable, "Differs from experiment=digits").rows}
    assert changed["train.epochs"] == ("2", "20") and changed["train.batch_size"] == ("20", "64")
    assert changed.keys().isdisjoint({"data.root", "train.precision", "logger.project"})
    settings = dict(named(page, DataTable, "All settings").rows)
    assert settings["train.log_every"] == "2"
    again = named(page, Command, "Continue").text
    assert again.startswith("python train.py experiment=digits") and again.endswith(f"output_dir={folder}")


def test_a_run_that_was_cut_is_marked_and_goes_on(digits, tmp_path):
    given = [*SMALL, f"data.root={digits}", "output_dir=run"]
    run("train.py", *given, "train.max_steps=3", cwd=tmp_path)
    run("train.py", *given, cwd=tmp_path)
    folder = tmp_path / "run"
    assert (folder / "report.html").exists()
    marks = named(run_page(folder), Chart, "Loss").spec["layer"][1]["data"]["values"]
    assert marks[0]["text"].startswith("continued at step 3") and marks[0]["x"] == pytest.approx(3 / 4)
    warned = json.loads((folder / "summary.json").read_text())["warnings"]
    assert [mark["text"].partition(": ")[2] for mark in marks[1:]] == [one["message"] for one in warned]
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text + '{"step": 99, "epo')  # being written, or cut in mid-line
    assert points(named(run_page(folder), Chart, "Loss"), "train")[-1][0] == 2.0
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    assert run_page(folder).status == "killed"  # nobody holds the folder
    warned = [{"step": 2, "message": "warning at step 2: the loss <b>jumped</b>"}]
    (folder / "summary.json").write_text(json.dumps(summary | {"warnings": warned}))
    assert named(run_page(folder), Remarks, "Warnings").lines == [warned[0]["message"]]
    (folder / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json: cannot be read as JSON"):
        run_page(folder)


def test_an_evaluation(evaluated):
    folder = evaluated / "ema"
    page, given = evaluation_page(folder), json.loads((folder / "metrics.json").read_text())
    table = predictions.read(folder / "predictions.csv")
    wrong = [
        (-p, file) for p, file, right in zip(table.confidence, table.files, table.correct, strict=True) if not right
    ]
    shown = named(page, Gallery, "Most confident mistakes").pictures
    assert [one.lines[-1] for one in shown] == [file for _, file in sorted(wrong, key=lambda pair: pair[0])][
        : len(shown)
    ]
    assert all(one.source.startswith("data:image/webp;base64,") for one in shown)
    assert tiles(page)["top-1"].value == f"{given['top1']:.2f} %"
    classes = {row[0]: row for row in named(page, DataTable, "Each class").rows}
    for row in read_csv(folder / "per_class.csv"):
        assert classes[row["class"]][2:5] == [int(row["images"]), int(row["correct"]), float(row["top1"])]
    pairs = [tuple(row[:3]) for row in named(page, DataTable, "Confused pairs").rows]
    expected = [
        (row["label_words"], row["predicted_words"], int(row["images"])) for row in read_csv(folder / "confusions.csv")
    ]
    assert pairs == expected
    bins = named(page, Chart, "Reliability diagram").spec["layer"][1]["data"]["values"]
    assert bins == [one for one in given["reliability"] if one["images"]]


def test_missing_images_are_said(evaluated, tmp_path):
    folder = shutil.copytree(evaluated / "ema", tmp_path / "moved")
    given = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(given | {"image_folder": str(tmp_path / "gone")}))
    gallery = named(evaluation_page(folder), Gallery, "Most confident mistakes")
    assert f"{len(gallery.pictures)} of these images were not found or cannot be read." in gallery.note
    assert {one.source for one in gallery.pictures} == {""}
    (folder / "predictions.csv").unlink()
    assert "predictions.csv is missing" in named(evaluation_page(folder), Remarks, "Mistakes").lines[0]


def test_an_evaluation_of_an_earlier_version_is_said(tmp_path):
    old = {"top1": 50.0, "top5": 90.0, "loss": 1.0, "images": 50, "weights": "ema", "images_per_second": 9.0}
    (tmp_path / "metrics.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"lacks checkpoint, images_in_set, set, settings.*evaluate again"):
        evaluation_page(tmp_path)


def test_a_comparison(evaluated):
    page = comparison_page(evaluated / "ema" / "comparison.json")
    (one,) = json.loads((evaluated / "ema" / "comparison.json").read_text())["comparisons"]
    assert tiles(page)["A minus B"].value == "-2.00 points"  # 1 of 50 images
    assert (tiles(page)["only A right"].value, tiles(page)["only B right"].value) == ("2", "3")
    for side, count in (("a", 2), ("b", 3)):
        files = [row["file"] for row in one["flipped"] if row["right"] == side]
        (gallery,) = [block for block in blocks(page, Gallery) if block.title.startswith(f"Only {side.upper()}")]
        assert [picture.lines[-1] for picture in gallery.pictures] == files and len(files) == count
        assert all(picture.source.startswith("data:image/webp") for picture in gallery.pictures)
    tables = [read_csv(evaluated / name / "per_class.csv") for name in ("ema", "other")]
    a, b = ({row["class"]: float(row["top1"]) for row in table} for table in tables)
    rows = named(page, DataTable, "Each class").rows
    assert {row[0]: row[3] for row in rows} == pytest.approx({name: a[name] - b[name] for name in a})
    assert rows[0][3] != 0 and [abs(row[3]) for row in rows] == sorted((abs(row[3]) for row in rows), reverse=True)


def test_a_sweep(tmp_path):
    ledger = begin(tmp_path / "sweep")
    for lr, width, top1 in ((0.1, 8, 40.0), (0.01, 8, 60.0), (0.001, 16, 20.0), (0.1, 16, 45.0), (0.01, 16, 65.0)):
        finish(ledger, Trial(name=f"{lr}-{width}", overrides=(f"optimizer.lr={lr}", f"backbone.width={width}")), [top1])
    failed = Trial(name="bad", overrides=("optimizer.lr=-1", "backbone.width=8"))
    ledger.record(failed, "started")
    ledger.record(failed, "failed", seconds=1.0, code=1, line="optimizer.lr=-1 must be positive")
    page = sweep_page(tmp_path / "sweep")
    rows = named(page, DataTable, "Trials").rows
    assert [row[:2] for row in rows[:2]] == [["0.01-16", 65.0], ["0.01-8", 60.0]]
    assert rows[-1][0] == "bad" and rows[-1][-1] == "optimizer.lr=-1 must be positive"
    against = named(page, Chart, "val/top1 against optimizer.lr").spec["data"]["values"]
    assert sorted((row["x"], row["y"]) for row in against) == [
        (0.001, 20.0),
        (0.01, 60.0),
        (0.01, 65.0),
        (0.1, 40.0),
        (0.1, 45.0),
    ]
    importance = named(page, Chart, "Importance of each setting").spec["data"]["values"]
    assert [row["name"] for row in importance] == ["optimizer.lr", "backbone.width"]
    assert sum(row["value"] for row in importance) == pytest.approx(1)
    assert "optimizer.lr=0.01 backbone.width=16 train.epochs=6" in named(page, Command, "The best trial, longer").text
    together = named(page, Chart, "All settings together").spec["data"]["values"]
    assert len(together) == 5 * 3
    write_reports(tmp_path / "sweep")
    assert "Importance of each setting" in (tmp_path / "sweep" / "report.html").read_text()
