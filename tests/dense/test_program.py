"""train.py and evaluate.py with task=detection and task=segmentation, as a person runs them, on drawn shapes."""

import json
import os
import signal
import time

import pytest
from programs import assert_same_run, metrics, once, run, run_process, start
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytestmark = pytest.mark.slow
LONG = pytest.mark.long
TINY = (  # steps of a tenth of a second
    *("logger=none", "train.precision=fp32", "backbone.width=8", "train.epochs=2", "train.batch_size=12"),
    *("task.channels=8", "train.log_every=1", "loader.threads=1", "evaluation.every=1", "schedule.warmup_epochs=0.5"),
)


@pytest.fixture(scope="session")
def shapes(shared):
    """24 training and 6 validation images of 64 pixels."""

    def draw(folder):
        given = ["--out", str(folder / "sets"), "--images", "24", "--val", "6", "--size", "64"]
        run_process("-m", "data.prepare", "shapes", *given, cwd=folder)

    return once(shared, "some-shapes", draw) / "sets"


@pytest.fixture
def detection(shapes):
    return ["experiment=shapes", f"data.root={shapes / 'coco'}", *TINY, "task.rois=8", "output_dir=run"]


@pytest.fixture
def segmentation(shapes):
    return ["experiment=shapes_segmentation", f"data.root={shapes / 'ade'}", *TINY, "output_dir=run"]


def coco_figures(annotations, predictions, kind):
    truth, rows = COCO(annotations), json.loads(predictions.read_text())
    if kind == "segm":  # with a box, loadRes takes the box's area for the mask's
        rows = [{key: value for key, value in row.items() if key != "bbox"} for row in rows]
    evaluation = COCOeval(truth, truth.loadRes(rows), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [100 * value if value > -1 else -1 for value in evaluation.stats]


def test_a_detector_from_training_to_its_page(detection, shapes, tmp_path):
    done = run("train.py", *detection, cwd=tmp_path)
    assert "left out 1 crowds" in done.stdout and "best box AP" in done.stdout
    records = metrics(tmp_path / "run")
    losses = {key for key in records[0] if key.startswith("train/loss_")}
    assert {"train/loss_mask", "train/loss_objectness", "train/loss_box_reg"} <= losses
    assert records[0]["train/loss"] == pytest.approx(sum(records[0][key] for key in losses))
    last = records[-1]
    assert last["val/images"] == 6 and {"val/box_ap", "val/mask_ap", "val/box_ap50"} <= last.keys()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_box_ap"] == max(row["val/box_ap"] for row in records if "val/box_ap" in row)
    assert "box AP" in (tmp_path / "run" / "report.html").read_text()

    run("evaluate.py", "checkpoint=run/checkpoints/last.pt", "output_dir=found", "look=2", cwd=tmp_path)
    found = json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert {key: found[key] for key in ("box_ap", "mask_ap", "box_ap50", "images")} == {
        key: last[f"val/{key}"] for key in ("box_ap", "mask_ap", "box_ap50", "images")
    }
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small")
    for kind, word in (("bbox", "box"), ("segm", "mask")):
        theirs = coco_figures(
            shapes / "coco/annotations/instances_val2017.json", tmp_path / "found/predictions.json", kind
        )
        ours = [-1 if found[f"{word}_{name}"] is None else found[f"{word}_{name}"] for name in names]
        assert ours == pytest.approx(theirs[:10], rel=1e-12)
    pictures = json.loads((tmp_path / "found/pictures/pictures.json").read_text())["pictures"]
    assert len(pictures) == 2 and all((tmp_path / "found/pictures" / one["png"]).exists() for one in pictures)
    assert (tmp_path / "found" / "report.html").exists()


def test_a_segmenter_from_training_to_its_page(segmentation, tmp_path):
    run("train.py", *segmentation, cwd=tmp_path)
    last = metrics(tmp_path / "run")[-1]
    run("evaluate.py", "checkpoint=run", "weights=raw", "output_dir=found", "look=1", cwd=tmp_path)
    found = json.loads((tmp_path / "found" / "metrics.json").read_text())
    best = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["miou"] == best["best_miou"] and found["images"] == last["val/images"] == 6
    for wrong in ("compile=true", "logger=tensorboard", "suite=imagenet", "data.classes=subset", "data.eval_size=64"):
        done = run("evaluate.py", "checkpoint=run", wrong, "output_dir=not", cwd=tmp_path, code=2)
        assert wrong.split("=")[0].split(".")[-1].split("_")[0] in done.stderr and done.stderr.count("\n") == 1
    assert not list((tmp_path / "not").glob("metrics.json"))
    assert len(found["classes"]) == 6 and (tmp_path / "found" / "confusion.csv").exists()
    assert "mIoU" in (tmp_path / "found" / "report.html").read_text()


@pytest.mark.parametrize(
    ("task", "ranks"),
    [
        ("detection", 1),
        *(pytest.param("detection", ranks, marks=LONG) for ranks in (2, 3, 4)),
        *(pytest.param("segmentation", ranks, marks=LONG) for ranks in (1, 2, 3, 4)),
    ],
)
def test_a_cut_run_continues_to_the_last_bit(task, ranks, request, tmp_path):
    given = [*request.getfixturevalue(task), f"launch.ranks={ranks}", "checkpoint.every_steps=1", "train.epochs=1"]
    given += ["train.ema_decay=0.9", "schedule.warmup_epochs=0.2"]
    run("train.py", *given, "output_dir=uncut", cwd=tmp_path)
    process = start("train.py", *given, cwd=tmp_path)
    log, deadline = tmp_path / "run" / "checkpoints" / "last.pt", time.monotonic() + 200
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run("train.py", *given, cwd=tmp_path)
    assert_same_run(tmp_path / "uncut", tmp_path / "run")
