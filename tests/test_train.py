"""train.py and evaluate.py as a person runs them: whole runs on real images, cut, resumed, on one and several ranks."""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from photographs import make_imagenet
from programs import (
    ROOT,
    SMALL,
    assert_same_run,
    assert_same_weights,
    checkpoint,
    metrics,
    once,
    run,
    run_process,
    start,
)
from wandb_file import history

from cotnet.verify_resume import CLOCK, differences

STEPS = 4  # optimizer steps in an epoch of SMALL on the `digits` below

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def uncut(shared, digits):
    """Runs never interrupted, on one rank and on two."""

    def train(folder: Path) -> None:
        for ranks in (1, 2):
            overrides = [*SMALL, f"data.root={digits}", f"launch.ranks={ranks}", "logger=wandb"]
            run("train.py", *overrides, f"output_dir={ranks}", cwd=folder)

    return once(shared, "uncut", train)


def test_run_folder(uncut, digits):
    folder = uncut / "1"
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    texts = {"config.yaml", "environment.jsonl", "metrics.jsonl", "summary.json"}
    assert files == texts | {"checkpoints", "curves.png", "wandb"}
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
    logged = {record["step"]: record["train/lr"] for record in metrics(uncut / "1") if "train/lr" in record}
    assert logged[2] == pytest.approx(expected[2], rel=1e-12)
    assert logged[8] == pytest.approx(expected[8], rel=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_wandb_holds_what_metrics_holds(uncut, ranks):
    folder = uncut / str(ranks)
    (mirror,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in history(mirror)]
    assert rows == metrics(folder, timings=True)
    assert mirror.name == f"run-{checkpoint(folder)['progress']['run_id']}.wandb"


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_at_an_epoch_end_changes_nothing(uncut, digits, ranks, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", f"launch.ranks={ranks}", "output_dir=run"]
    run("train.py", *overrides, f"train.max_steps={STEPS}", cwd=tmp_path)
    assert checkpoint(tmp_path / "run")["progress"]["epoch"] == 1
    done = run("train.py", *overrides, cwd=tmp_path)
    assert "continuing run at epoch 1, step 4" in done.stdout
    starts = [json.loads(line) for line in (tmp_path / "run" / "environment.jsonl").read_text().splitlines()]
    assert [(start["step"], start["ranks"]) for start in starts] == [(0, ranks), (STEPS, ranks)]
    assert_same_run(uncut / str(ranks), tmp_path / "run")


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGKILL, 2)])
def test_cut_anywhere_and_resumed(uncut, digits, number, ranks, tmp_path):
    """A signal at whatever step it arrives (SIGKILL: from the last every_steps checkpoint on)."""
    overrides = [*SMALL, f"data.root={digits}", f"launch.ranks={ranks}", "checkpoint.every_steps=1", "output_dir=run"]
    process = start("train.py", *overrides, cwd=tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    group = os.getpgid(process.pid)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # Ctrl-C reaches the whole group
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 75), out + err
    if number != signal.SIGKILL:
        assert "interrupted; the same command continues run" in out
        assert "Traceback" not in err
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    wait_until_gone(group)
    run("train.py", *overrides, cwd=tmp_path)
    assert_same_run(uncut / str(ranks), tmp_path / "run")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_resumes_in_mid_epoch(precision, digits, tmp_path):
    """Autocast, the loss scaler, dropout, drop path and every random augmentation continue where they were."""
    overrides = [*SMALL, f"data.root={digits}", f"train.precision={precision}", "augmentation=advanced"]
    overrides += ["backbone.drop_path=0.2", "backbone.dropout=0.2", "train.accumulation=2"]
    run("train.py", *overrides, "output_dir=uncut", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", "train.max_steps=3", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", cwd=tmp_path)
    assert_same_weights(tmp_path / "uncut", tmp_path / "cut")
    one, other = checkpoint(tmp_path / "uncut"), checkpoint(tmp_path / "cut")
    assert one["scaler"] == other["scaler"]
    assert bool(one["scaler"]) == (precision == "fp16")


@pytest.mark.slow
def test_help_waits_for_nothing_that_only_a_run_needs(tmp_path):
    """A second of imports each: what is loaded is counted, since the time depends on the machine."""
    code = "import sys, train\nsys.argv = ['train.py', '--help']\ntry: train.main()\nexcept SystemExit: pass\n"
    heavy = ("torch", "torchvision", "torch._dynamo", "torch._inductor", "timm", "wandb", "matplotlib", "nvidia.dali")
    done = run_process("-c", code + f"print([m for m in {heavy} if m in sys.modules])", cwd=tmp_path)
    assert "max_minutes: null" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_max_minutes_ends_evaluates_and_may_be_raised(digits, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", "train.epochs=1000", "output_dir=run"]
    run("train.py", *overrides, "train.max_minutes=0.02", "launch.ranks=2", cwd=tmp_path)
    first = checkpoint(tmp_path / "run")["progress"]
    assert 0.02 * 60 <= first["seconds"] < 60
    assert "val/top1" in metrics(tmp_path / "run")[-1]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
    assert "is finished" in run("train.py", *overrides, "train.max_minutes=0.02", cwd=tmp_path).stdout
    longer = first["seconds"] / 60 + 0.02
    assert "continuing run" in run("train.py", *overrides, f"train.max_minutes={longer}", cwd=tmp_path).stdout
    second = checkpoint(tmp_path / "run")["progress"]
    assert second["seconds"] >= longer * 60
    assert second["step"] > first["step"]


@pytest.mark.slow
def test_lamb_layer_decay_bce_and_value_clipping_resume_in_mid_epoch(digits, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", "optimizer=lamb", "optimizer.layer_decay=0.8", "train.loss=bce"]
    overrides += ["train.clip_value=0.01", "schedule=linear", "schedule.cooldown_epochs=1", "schedule.warmup_epochs=0"]
    run("train.py", *overrides, "output_dir=uncut", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", "train.max_steps=3", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", cwd=tmp_path)
    one, other = checkpoint(tmp_path / "uncut"), checkpoint(tmp_path / "cut")
    for part in ("model", "ema"):
        for key, value in one[part].items():
            assert torch.equal(value, other[part][key]), f"{part}: {key}"
    assert str(one["optimizer"]) == str(other["optimizer"])
    assert len(one["optimizer"]["param_groups"]) == 16  # eight layers, with and without weight decay
    assert metrics(tmp_path / "uncut")[-2]["train/lr"] == 0.0


@pytest.mark.slow
def test_memory_format_and_checkpointing_resume_and_evaluate_alike(digits, tmp_path):
    """Recomputed activations give the run without them; evaluate.py takes the checkpoint's memory format."""
    overrides = [*SMALL, f"data.root={digits}", "train.channels_last=true", "backbone.drop_path=0.2"]
    overrides += ["train.epochs=1", "schedule.warmup_epochs=0"]
    run("train.py", *overrides, "output_dir=kept", cwd=tmp_path)
    overrides += ["train.checkpointing=[1,3]", "output_dir=cut"]
    run("train.py", *overrides, "train.max_steps=3", cwd=tmp_path)
    run("train.py", *overrides, cwd=tmp_path)
    assert_same_weights(tmp_path / "kept", tmp_path / "cut")
    run("evaluate.py", "checkpoint=cut/checkpoints/last.pt", "weights=raw", "output_dir=evaluation", cwd=tmp_path)
    logged = [record for record in metrics(tmp_path / "cut") if "val/top1" in record][-1]
    result = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert result["loss"] == logged["val/loss"]


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a whole net takes minutes to compile without a GPU")
def test_compiled_run_resumes_and_is_evaluated_uncompiled(digits, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", "train.compile=true", "train.channels_last=true"]
    overrides += ["train.epochs=1", "schedule.warmup_epochs=0", "backbone.dropout=0.2", "launch.ranks=1"]
    run("train.py", *overrides, "output_dir=uncut", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", "train.max_steps=3", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", cwd=tmp_path)
    assert_same_weights(tmp_path / "uncut", tmp_path / "cut")
    logged = [record for record in metrics(tmp_path / "cut") if "val/top1" in record][-1]
    for name, tolerance in (("false", 0), ("true", 1e-3)):
        given = ["checkpoint=cut/checkpoints/last.pt", "weights=raw", f"compile={name}", f"output_dir={name}"]
        run("evaluate.py", *given, cwd=tmp_path)
        result = json.loads((tmp_path / name / "metrics.json").read_text())
        assert result["loss"] == pytest.approx(logged["val/loss"], rel=tolerance, abs=0)


def alive(group: int) -> list[str]:
    listing = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def wait_until_gone(group: int) -> None:
    """No process is left; multiprocessing's tracker ends after its parent, a killed parent's ranks after their step."""
    deadline = time.monotonic() + 30
    while alive(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(group)


def test_evaluation_is_the_same_on_any_number_of_ranks_and_as_logged(uncut, tmp_path):
    """Batches of 8 leave 50 images uneven on every count of ranks; the training's own shape repeats its figures."""
    results = {}
    for ranks in (1, 2, 3):
        overrides = ["checkpoint=" + str(uncut / "1/checkpoints/last.pt"), f"launch.ranks={ranks}", "weights=raw"]
        run("evaluate.py", *overrides, "data.eval_batch_size=8", f"output_dir={ranks}", cwd=tmp_path)
        results[ranks] = json.loads((tmp_path / str(ranks) / "metrics.json").read_text())
        assert results[ranks].pop("images_per_second") > 0
    assert results[1] == results[2] == results[3]
    assert results[1].keys() == {"top1", "top5", "loss", "images", "weights"}
    logged = [record for record in metrics(uncut / "1") if "val/top1" in record][-1]
    for weights, suffix in (("raw", ""), ("ema", "_ema")):
        overrides = ["checkpoint=" + str(uncut / "1/checkpoints/last.pt"), f"weights={weights}"]
        run("evaluate.py", *overrides, f"output_dir={weights}", cwd=tmp_path)
        result = json.loads((tmp_path / weights / "metrics.json").read_text())
        assert {name: result[name] for name in ("top1", "top5", "loss", "images")} == {
            name: logged[f"val/{name}{suffix}"] for name in ("top1", "top5", "loss", "images")
        }


def test_published_weights_are_evaluated_by_the_name_of_their_model(uncut, digits, tmp_path):
    """A file as other projects write it, with a configuration object in it, gives the figures of our checkpoint."""
    ours = checkpoint(uncut / "1")
    published = {"arch": "small", "args": argparse.Namespace(lr=0.1), "state_dict": ours["model"]}
    torch.save(published, tmp_path / "small.pth.tar")
    given = [
        "checkpoint=small.pth.tar",
        "backbone=cotnet_small",
        "data=digits",
        f"data.root={digits}",
        "precision=fp32",
    ]
    run("evaluate.py", *given, "output_dir=published", cwd=tmp_path)
    run("evaluate.py", f"checkpoint={uncut}/1/checkpoints/last.pt", "weights=raw", "output_dir=ours", cwd=tmp_path)
    results = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("published", "ours")]
    for name in ("top1", "top5", "loss", "images"):
        assert results[0][name] == results[1][name]
    done = run("evaluate.py", "checkpoint=small.pth.tar", "output_dir=nameless", cwd=tmp_path, code=2)
    assert "for published weights name their model with backbone=NAME" in done.stderr


def test_two_ranks_equal_one_in_float64(digits, tmp_path):
    """A net without BatchNorm computes the same gradients from the same global batch, however it is divided."""
    overrides = [*SMALL, f"data.root={digits}", "backbone=pvt_tiny", "train.precision=fp64", "train.max_steps=3"]
    overrides += ["train.log_every=1", "optimizer=adamw", "optimizer.lr=1e-3", "train.clip_norm=1.0"]
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


def test_torchrun_joins_and_gives_the_same_run(uncut, digits, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py")]
    run_process(*command, *SMALL, f"data.root={digits}", "output_dir=run", cwd=tmp_path)
    assert_same_run(uncut / "2", tmp_path / "run")


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
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


def test_finetuning_on_other_classes_at_a_higher_resolution(shared, digits, tmp_path):
    """From five digits at 32 px to the other five at 48 px: better than the same few epochs from scratch."""
    for name, classes in (("first", range(5)), ("second", range(5, 10))):
        for split in ("train", "val"):
            for label in classes:
                shutil.copytree(digits / split / str(label), tmp_path / name / split / str(label))
    common = [*SMALL, "data.num_classes=5", "train.batch_size=15"]
    run("train.py", *common, "data.root=first", "train.epochs=12", "output_dir=before", cwd=tmp_path)
    sizes = ["data.root=second", "data.image_size=48", "data.eval_size=48"]
    weights = ["backbone.weights=before/checkpoints/last.pt", "backbone.head=reset"]
    common += ["train.epochs=4", "optimizer.lr=0.02"]
    run("train.py", *common, *sizes, *weights, "output_dir=tuned", cwd=tmp_path)
    run("train.py", *common, *sizes, "output_dir=scratch", cwd=tmp_path)
    top1 = {name: metrics(tmp_path / name)[-1]["val/top1_ema"] for name in ("tuned", "scratch")}
    assert top1["tuned"] > top1["scratch"] + 10
    done = run("train.py", *SMALL, f"data.root={digits}", *weights[:1], "output_dir=keep", cwd=tmp_path, code=2)
    assert "head=reset" in done.stderr


def test_finetuning_resizes_position_tables(digits, tmp_path):
    """PVT from 32 to 64 px: what the tables hold after a step of almost no length is what was there, interpolated."""
    common = [*SMALL, f"data.root={digits}", "backbone=pvt_tiny", "train.max_steps=1", "optimizer.lr=1e-12"]
    common.append("schedule.warmup_start=0")
    run("train.py", *common, "output_dir=before", cwd=tmp_path)
    weights = ["backbone.weights=before/checkpoints/last.pt", "backbone.ema=false"]
    run("train.py", *common, *weights, "data.image_size=64", "data.eval_size=64", "output_dir=after", cwd=tmp_path)
    before, after = (checkpoint(tmp_path / name)["model"]["pos_embed1"] for name in ("before", "after"))
    table = before.unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(table, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(after, resized.permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=1e-6)


def test_default_output_dir_is_found_again(digits, tmp_path):
    (tmp_path / "d").symlink_to(digits)
    overrides = ["experiment=digits", "data.root=d", "logger=none", "train.batch_size=30", "train.max_steps=1"]
    run("train.py", *overrides, cwd=tmp_path)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name == "data.root-d__experiment-digits__train.batch_size-30__train.max_steps-1"
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


def test_the_smallest_difference_is_found(uncut, tmp_path):
    """What the comparison of runs is worth: one weight's last bit, one logged figure."""
    shutil.copytree(uncut / "1", tmp_path / "run")
    assert differences(uncut / "1", tmp_path / "run") == []
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    kept = torch.load(path, weights_only=True)
    weight = kept["ema"]["fc.weight"].view(-1)
    weight[7] = torch.nextafter(weight[7], torch.tensor(1.0))
    torch.save(kept, path)
    log = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[1]["train/loss"] = math.nextafter(lines[1]["train/loss"], 0)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert differences(uncut / "1", tmp_path / "run") == ["best.pt: ema.fc.weight", "metrics.jsonl: step 4"]
