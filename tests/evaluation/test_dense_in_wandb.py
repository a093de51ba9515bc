"""The evaluation of a segmenter in W&B, as the offline file has it."""

import json

import pytest
from programs import run_process
from wandb_file import summary, wandb_records

from cotnet.reporting.wandb_file import read_start, run_files, values_of

pytestmark = [pytest.mark.slow, pytest.mark.long]
TINY = (
    *("experiment=shapes_segmentation", "logger.mode=offline", "train.precision=fp32", "backbone.width=8"),
    *("train.batch_size=12", "train.max_steps=1", "task.channels=8", "loader.threads=1", "schedule.warmup_epochs=0"),
)


def test_figures_classes_and_pictures(tmp_path):
    given = ["--out", str(tmp_path / "sets"), "--images", "12", "--val", "4", "--size", "64"]
    run_process("-m", "data.prepare", "shapes", *given, cwd=tmp_path)
    run_process("train.py", *TINY, f"data.root={tmp_path / 'sets' / 'ade'}", "output_dir=run", cwd=tmp_path)
    words = ("checkpoint=run", "output_dir=e", "look=2", "logger=wandb", "logger.mode=offline")
    assert "W&B: offline" in run_process("evaluate.py", *words, cwd=tmp_path).stdout
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    (trained,), (file,) = run_files(tmp_path / "run"), run_files(tmp_path / "e")
    shown = summary(file)
    assert {key: shown[key] for key in ("miou", "pixel_accuracy", "images")} == {
        key: metrics[key] for key in ("miou", "pixel_accuracy", "images")
    }
    start = read_start(file)
    assert (start.run.job_type, start.config["training_run"]) == ("eval", read_start(trained).run.run_id)
    assert start.config["figures_depend_on"] == metrics["settings"]
    (row,) = (values_of(one.history.item) for one in wandb_records(file) if one.HasField("history"))
    assert row["classes/_type"] == row["pictures/_type"] == "table-file"
    assert (row["classes/nrows"], row["pictures/nrows"]) == (len(metrics["classes"]), 2)
