"""evaluate.py, and training that starts from weights: what a checkpoint gives afterwards."""

import argparse
import json
import shutil

import pytest
import torch
import yaml
from programs import SMALL, checkpoint, make_digits, metrics, run

from cotnet import models

pytestmark = pytest.mark.slow
FIGURES = {
    *("top1", "top5", "loss", "images", "weights", "top1_interval", "top5_interval"),
    *("ece", "adaptive_ece", "classwise_ece", "brier", "nll", "temperature", "held_out", "reliability"),
    *("parameters", "multiply_adds", "checkpoint", "set", "images_in_set", "image_folder", "classes", "missing"),
    "device",
    *("weights_checksum", "image_set", "settings"),
}


@pytest.mark.parametrize("several", [(3,), pytest.param((2, 4), marks=pytest.mark.long)])
def test_evaluation_is_the_same_on_any_number_of_ranks_and_as_logged(several, uncut, tmp_path):
    """Batches of 8 leave 50 images uneven on every count of ranks; the training's own shape repeats its figures."""
    results, counts = {}, (1, *several)
    for ranks in counts:
        overrides = [f"checkpoint={uncut(1)}/checkpoints/last.pt", f"launch.ranks={ranks}", "weights=raw"]
        run("evaluate.py", *overrides, "data.eval_batch_size=8", "look=2", f"output_dir={ranks}", cwd=tmp_path)
        results[ranks] = json.loads((tmp_path / str(ranks) / "metrics.json").read_text())
        for name in ("images_per_second", "latency_ms_p50", "latency_ms_p95", "peak_memory_mib"):
            assert results[ranks].pop(name) > 0
    assert all(found == results[1] for found in results.values())
    for name in ("predictions.csv", "per_class.csv", "confusions.csv", "look/look.json"):
        assert len({(tmp_path / str(ranks) / name).read_bytes() for ranks in counts}) == 1
    assert all((tmp_path / str(ranks) / "look" / "0002.png").exists() for ranks in counts)
    assert results[1].keys() == FIGURES
    logged = [record for record in metrics(uncut(1)) if "val/top1" in record][-1]
    for weights, suffix in (("raw", ""), ("ema", "_ema")):
        overrides = [f"checkpoint={uncut(1)}/checkpoints/last.pt", f"weights={weights}"]
        run("evaluate.py", *overrides, f"output_dir={weights}", cwd=tmp_path)
        result = json.loads((tmp_path / weights / "metrics.json").read_text())
        assert {name: result[name] for name in ("top1", "top5", "loss", "images")} == {
            name: logged[f"val/{name}{suffix}"] for name in ("top1", "top5", "loss", "images")
        }


def test_published_weights_are_evaluated_by_the_name_of_their_model(uncut, digits, tmp_path):
    """A file as other projects write it, with a configuration object in it, gives the figures of our checkpoint."""
    ours = checkpoint(uncut(1))
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
    run("evaluate.py", f"checkpoint={uncut(1)}/checkpoints/last.pt", "weights=raw", "output_dir=ours", cwd=tmp_path)
    results = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("published", "ours")]
    for name in ("top1", "top5", "loss", "images"):
        assert results[0][name] == results[1][name]
    done = run("evaluate.py", "checkpoint=small.pth.tar", "output_dir=nameless", cwd=tmp_path, code=2)
    assert "for published weights name their model with backbone=NAME" in done.stderr


@pytest.mark.long
def test_published_weights_are_evaluated_at_their_own_size(tmp_path):
    """Nothing but the file, its model and the images is given: SE-CoTNetD-152 belongs to 256 px and 0.888."""
    make_digits(tmp_path / "few", train=1, val=1)
    for label in range(2, 10):
        shutil.rmtree(tmp_path / "few" / "train" / str(label))
        shutil.rmtree(tmp_path / "few" / "val" / str(label))
    torch.save(models.se_cotnetd_152(num_classes=2).state_dict(), tmp_path / "published.pth")
    given = ["checkpoint=published.pth", "backbone=se_cotnetd_152", "data.root=few", "data.num_classes=2"]
    run("evaluate.py", *given, "data.eval_batch_size=5", "loader=torchvision", "output_dir=out", cwd=tmp_path)
    data = yaml.safe_load((tmp_path / "out" / "evaluation.yaml").read_text())["data"]
    assert (data["eval_size"], data["crop_ratio"], data["eval_interpolation"]) == (256, 0.888, "bicubic")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["images"] == 2


@pytest.mark.long
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
