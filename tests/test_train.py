"""train.py as a person runs it: whole runs on real images, on one and several ranks, and what they leave."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from event_files import assert_shown
from photographs import make_imagenet
from programs import ROOT, SMALL, STEPS, assert_same_run, checkpoint, metrics, run, run_process, start
from wandb_file import history, summary, wandb_records

from cotnet.records import best_figures
from cotnet.reporting.wandb_file import read_start
from cotnet.verify_resume import CLOCK

pytestmark = pytest.mark.slow


def test_run_folder(uncut, digits):
    folder = uncut(1)
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    texts = {"config.yaml", "environment.jsonl", "metrics.jsonl", "summary.json"}
    assert files == texts | {"checkpoints", "curves.png", "report.html", "wandb"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    records = metrics(folder, timings=True)
    train = [record for record in records if "train/loss" in record]
    val = [record for record in records if "val/top1" in record]
    assert [record["step"] for record in train] == [2, 4, 6, 8]
    assert [record["epoch"] for record in train] == [0.5, 1.0, 1.5, 2.0]
    assert [record["step"] for record in val] == [4, 8]
    figures = {"train/loss", "train/accuracy", "train/grad_norm", "train/lr", *CLOCK}
    assert train[0].keys() == {"step", "epoch"} | figures
    assert all(record["train/accuracy"] % 2.5 == 0 for record in train)  # of the 40 images of two steps
    names = {f"val/{name}{suffix}" for name in ("top1", "top5", "loss", "images") for suffix in ("", "_ema")}
    assert val[0].keys() == {"step", "epoch"} | names
    assert all(record["val/images"] == 50 for record in val)
    assert all(0 <= record["train/data_wait"] <= 1 for record in train)
    summary = json.loads((folder / "summary.json").read_text())
    names = {
        "status",
        "best_top1",
        "best_top5",
        "best_epoch",
        "best_weights",
        "images_per_second",
        "seconds",
        "warnings",
    }
    assert summary.keys() == names
    assert summary["warnings"] == []
    assert summary["status"] == "finished"
    best = max(val, key=lambda record: max(record["val/top1"], record["val/top1_ema"]))
    assert summary["best_top1"] == max(best["val/top1"], best["val/top1_ema"])


def test_learning_rate_of_every_step(uncut):
    peak = 0.4 * 20 / 256
    expected = {
        2: 1e-4 + (peak - 1e-4) / STEPS,  # the warm-up's second step, at epoch 1/4
        8: 1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * (1.75 / 2))) / 2,
    }
    logged = {record["step"]: record["train/lr"] for record in metrics(uncut(1)) if "train/lr" in record}
    assert logged[2] == pytest.approx(expected[2], rel=1e-12)
    assert logged[8] == pytest.approx(expected[8], rel=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_wandb_holds_what_metrics_holds(uncut, ranks):
    folder = uncut(ranks)
    (mirror,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in history(mirror)]
    assert rows == metrics(folder, timings=True)
    run_id = checkpoint(folder)["progress"]["run_id"]
    assert mirror.name == f"run-{run_id}.wandb"
    began = read_start(mirror).run
    assert (began.project, began.job_type, began.notes, began.run_group) == ("cotnet", "train", "uncut", "")
    assert best_figures(rows).items() <= summary(mirror).items()
    models = [record.artifact for record in wandb_records(mirror) if record.HasField("artifact")]
    for model, (name, alias) in zip(models, {"best.pt": "best", "last.pt": "latest"}.items(), strict=True):
        assert (model.type, model.name) == ("model", f"model-{run_id}") and alias in model.aliases
        (entry,) = model.manifest.contents
        assert entry.path == name
        assert Path(entry.local_path).read_bytes() == (folder / "checkpoints" / name).read_bytes()


def test_help_waits_for_nothing_that_only_a_run_needs(tmp_path):
    """A second of imports each: what is loaded is counted, since the time depends on the machine. Torch and DALI are
    needed: the meanings stand where backbones and loaders are built."""
    code = "import sys, train\nsys.argv = ['train.py', '--help']\ntry: train.main()\nexcept SystemExit: pass\n"
    heavy = ("torchvision", "torch._dynamo", "torch._inductor", "timm", "wandb", "matplotlib", "scipy", "optuna")
    done = run_process("-c", code + f"print([m for m in {heavy} if m in sys.modules])", cwd=tmp_path)
    assert "train.max_minutes=null" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.long
def test_max_minutes_ends_evaluates_and_may_be_raised(digits, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", "train.epochs=1000", "logger=tensorboard", "output_dir=run"]
    run("train.py", *overrides, "train.max_minutes=0.02", "launch.ranks=2", cwd=tmp_path)
    first = checkpoint(tmp_path / "run")["progress"]
    assert 0.02 * 60 <= first["seconds"] < 60
    assert "val/top1" in metrics(tmp_path / "run")[-1]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
    assert "is finished" in run("train.py", *overrides, "train.max_minutes=0.02", cwd=tmp_path).stdout
    longer = first["seconds"] / 60 + 1e-5  # less than the start-up takes: one step
    assert "continuing run" in run("train.py", *overrides, f"train.max_minutes={longer}", cwd=tmp_path).stdout
    second = checkpoint(tmp_path / "run")["progress"]
    assert second["seconds"] >= longer * 60
    assert second["step"] > first["step"]
    assert_shown(tmp_path / "run")  # two starts, as TensorBoard shows them


def test_two_ranks_equal_one_in_float64(digits, tmp_path):
    """A net without BatchNorm computes the same gradients from the same global batch, however it is divided."""
    overrides = [*SMALL, f"data.root={digits}", "train.precision=fp64", "train.max_steps=3"]
    overrides += ["backbone=timm", "backbone.model_name=test_convnext"]
    overrides += [
        "train.log_every=1",
        "optimizer=adamw",
        "optimizer.lr=1e-3",
        "train.clip_norm=1.0",
        "train.batch_size=8",
    ]
    layouts = {"1": ["launch.ranks=1"], "2": ["launch.ranks=2"], "1x2": ["launch.ranks=1", "train.accumulation=2"]}
    for name, layout in layouts.items():
        run("train.py", *overrides, *layout, f"output_dir={name}", cwd=tmp_path)
    reference = checkpoint(tmp_path / "1")["model"]
    for name in ("2", "1x2"):
        other = checkpoint(tmp_path / name)["model"]
        for key, value in reference.items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-9, msg=f"{name}: {key}")
        for ours, theirs in zip(metrics(tmp_path / "1"), metrics(tmp_path / name), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.long
def test_torchrun_joins_and_gives_the_same_run(uncut, digits, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py")]
    run_process(*command, *SMALL, "launch.ranks=null", f"data.root={digits}", "output_dir=run", cwd=tmp_path)
    assert_same_run(uncut(2), tmp_path / "run")


@pytest.mark.parametrize("loader", ["dali", pytest.param("torchvision", marks=pytest.mark.long)])
def test_imagenet_layout(loader, tmp_path):
    """Photographs in synset folders: train, stop, resume, evaluate, with everything the advanced augmentation does."""
    make_imagenet(tmp_path / "imagenet", classes=4, train=8, val=5)
    overrides = [
        "data=imagenet",
        "data.root=imagenet",
        "data.num_classes=4",
        f"loader={loader}",
        "backbone=cotnet_small",
    ]
    overrides += ["augmentation=advanced", "backbone.drop_path=0.1", "data.image_size=64", "data.eval_size=64"]
    overrides += ["train.batch_size=8", "train.epochs=2", "schedule.warmup_epochs=1", "logger=none", "output_dir=run"]
    overrides += ["data.eval_batch_size=7", "train.clip_norm=1.0", "train.accumulation=2", "train.log_every=2"]
    run("train.py", *overrides, "train.max_steps=5", cwd=tmp_path)
    run("train.py", *overrides, cwd=tmp_path)
    val = [record for record in metrics(tmp_path / "run") if "val/top1" in record]
    assert [record["step"] for record in val] == [4, 5, 8]
    assert {record["val/images"] for record in val} == {20}
    run("evaluate.py", "checkpoint=run/checkpoints/last.pt", "output_dir=evaluation", cwd=tmp_path)
    result = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert result["loss"] == val[-1]["val/loss_ema"]
    assert result["weights"] == "ema"


def test_without_averaging_the_model_is_evaluated_once(digits, tmp_path):
    run(
        "train.py",
        *SMALL,
        f"data.root={digits}",
        "train.ema_decay=0",
        "train.max_steps=2",
        "output_dir=r",
        cwd=tmp_path,
    )
    row = metrics(tmp_path / "r")[-1]
    assert all(row[f"val/{name}"] == row[f"val/{name}_ema"] for name in ("top1", "top5", "loss", "images"))
    saved = checkpoint(tmp_path / "r")
    assert all(torch.equal(saved["ema"][key], value) for key, value in saved["model"].items())


def test_default_output_dir_is_found_again(digits, tmp_path):
    (tmp_path / "d").symlink_to(digits)
    overrides = ["experiment=digits", "data.root=d", "logger=none", "train.batch_size=30", "train.max_steps=1"]
    run("train.py", *overrides, cwd=tmp_path)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name == "experiment-digits__train.batch_size-30"
    assert f"outputs/{folder.name} is finished" in run("train.py", *overrides, cwd=tmp_path).stdout


def test_two_runs_never_share_a_folder(digits, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", "train.epochs=50", "output_dir=run"]
    first = start("train.py", *overrides, cwd=tmp_path)
    while not (tmp_path / "run" / "config.yaml").exists():
        time.sleep(0.05)
    second = run("train.py", *overrides, cwd=tmp_path, code=2)
    first.terminate()
    assert first.wait(timeout=60) == 75
    assert "run is in use by another process" in second.stderr
