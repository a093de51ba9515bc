"""evaluate.py on images of any kind: each row against a loop over PIL images, sizes, damaged files, wrong input."""

import json
import shutil
import signal
import subprocess
import sys
import time

import miniature
import numpy as np
import pytest
import torch
from miniature import SETTINGS, figures, fill, rows
from programs import ROOT, environment, run

from cotnet.evaluation.suites import synsets

pytestmark = pytest.mark.slow


@pytest.fixture
def imagenet(tmp_path):
    """A val split of 30 images in the folders of some of ImageNet's classes, and a classifier of all 1,000."""
    miniature.save_weights(tmp_path / "weights.pth")
    right = fill(tmp_path / "imagenet" / "val", lambda one: synsets()[one], images=30)
    return tmp_path, right


SUBSET = ("checkpoint=weights.pth", *SETTINGS, "data.root=imagenet", "data.classes=subset")


def test_every_row_equals_a_loop_over_pil_images(imagenet):
    """The independent loop: open, resize, crop, normalise with PIL and torchvision, one image at a time."""
    folder, right = imagenet
    run("evaluate.py", *SUBSET, "output_dir=out", cwd=folder)
    table = rows(folder / "out" / "predictions.csv")
    assert len(table) == 30
    hits = 0
    for row in table:
        logits = miniature.logits(folder / "imagenet" / "val" / row["file"]).double()
        shares, best = logits.softmax(0).topk(5)
        assert [int(row[f"top{place}"]) for place in range(1, 6)] == best.tolist()
        assert [float(row[f"p{place}"]) for place in range(1, 6)] == pytest.approx(shares.tolist(), rel=1e-4)
        label = synsets().index(row["file"].split("/")[0])
        assert int(row["label"]) == label
        assert float(row["loss"]) == pytest.approx(float(torch.logsumexp(logits, 0) - logits[label]), rel=1e-4)
        assert int(row["correct"]) == (best[0] == label)
        hits += int(row["correct"])
    found = figures(folder / "out")
    assert hits == right and found["top1"] == pytest.approx(100 * right / 30)
    assert found["loss"] == pytest.approx(np.mean([float(row["loss"]) for row in table]), rel=1e-12)
    classes = {row["file"].split("/")[0] for row in table}
    assert found["classes"] == f"{len(classes)} of 1000"
    per_class = rows(folder / "out" / "per_class.csv")
    assert {row["class"] for row in per_class} == classes
    assert sum(int(row["correct"]) for row in per_class) == right
    confused = rows(folder / "out" / "confusions.csv")
    assert sum(int(row["images"]) for row in confused) == 30 - right
    model = miniature.classifier()
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_labels_by_number_and_all_classes(imagenet):
    """Without data.classes=subset a split of other classes is refused, with the first five of each side."""
    folder, _ = imagenet
    done = run("evaluate.py", *SUBSET[:-1], "output_dir=all", cwd=folder, code=2)
    assert "for some of the model's classes set data.classes=subset" in done.stderr
    (folder / "imagenet" / "val" / "cat").mkdir()
    shutil.copy(next((folder / "imagenet" / "val").rglob("*.png")), folder / "imagenet" / "val" / "cat" / "x.png")
    done = run("evaluate.py", *SUBSET, "output_dir=cat", cwd=folder, code=2)
    assert "1 of " in done.stderr and "among them cat; its classes begin with n01440764, n01443537" in done.stderr


def test_images_without_labels(imagenet):
    folder, _ = imagenet
    run("evaluate.py", *SUBSET[:-2], "images=imagenet/val", "output_dir=out", cwd=folder)
    table = rows(folder / "out" / "predictions.csv")
    assert len(table) == 30 and {row["label"] for row in table} == {""}
    assert "top1" not in figures(folder / "out")
    found = {row["file"]: row for row in table}
    run("evaluate.py", *SUBSET, "output_dir=labelled", cwd=folder)
    for row in rows(folder / "labelled" / "predictions.csv"):
        assert found[row["file"]]["top1"] == row["top1"]
    from torchvision.models import ResNet50_Weights

    words = ResNet50_Weights.DEFAULT.meta["categories"]
    assert table[0]["class1"] == words[int(table[0]["top1"])]
    one = next((folder / "imagenet" / "val").rglob("*.png"))
    run("evaluate.py", *SUBSET[:-2], f"images=[{one}]", "output_dir=one", cwd=folder)
    assert (
        rows(folder / "one" / "predictions.csv")[0]["top1"]
        == found[str(one.relative_to(folder / "imagenet" / "val"))]["top1"]
    )
    done = run("evaluate.py", *SUBSET[:-2], "images=[nothing.jpg]", "output_dir=none", cwd=folder, code=2)
    assert "no file nothing.jpg" in done.stderr


@pytest.mark.parametrize(
    ("loader", "ranks"),
    [("dali", 1), *(pytest.param(*given, marks=pytest.mark.long) for given in (("dali", 2), ("torchvision", 3)))],
)
def test_images_that_do_not_decode_are_named_and_counted(imagenet, loader, ranks):
    folder, _ = imagenet
    run("evaluate.py", *SUBSET, f"loader={loader}", "loader.threads=1", "output_dir=whole", cwd=folder)
    whole = {row["file"]: row for row in rows(folder / "whole" / "predictions.csv")}
    broken = sorted(whole)[3:25:7]
    for name in broken:
        path = folder / "imagenet" / "val" / name
        path.write_bytes(path.read_bytes()[:300])
    given = [*SUBSET, f"loader={loader}", "loader.threads=1", f"launch.ranks={ranks}", "data.eval_batch_size=4"]
    done = run("evaluate.py", *given, "output_dir=out", cwd=folder, code=1)
    found = figures(folder / "out")
    assert [one["file"] for one in found["missing"]] == broken
    assert (found["images"], found["images_in_set"]) == (30 - len(broken), 30)
    assert f"{30 - len(broken)} of 30 images" in done.stdout if ranks == 1 else True
    table = {row["file"]: row for row in rows(folder / "out" / "predictions.csv")}
    assert table.keys() == whole.keys() - set(broken)
    assert all(table[name]["top1"] == whole[name]["top1"] for name in table)
    if ranks == 1:
        run("evaluate.py", *given, "data.allow_missing=true", "output_dir=allowed", cwd=folder)
        assert figures(folder / "allowed")["top1"] == found["top1"]


def test_several_sizes(uncut, tmp_path):
    last = f"checkpoint={uncut(1)}/checkpoints/last.pt"
    run("evaluate.py", last, "data.eval_size=[32,48]", "output_dir=both", cwd=tmp_path)
    for size in (32, 48):
        run("evaluate.py", last, f"data.eval_size={size}", f"output_dir=alone{size}", cwd=tmp_path)
        one = (tmp_path / f"alone{size}" / "predictions.csv").read_bytes()
        assert (tmp_path / "both" / str(size) / "predictions.csv").read_bytes() == one
    both = figures(tmp_path / "both")["evaluations"]
    assert both["48"]["multiply_adds"] > 1.8 * both["32"]["multiply_adds"]


def test_a_cut_evaluation_goes_on_with_what_is_left(imagenet):
    """Two sets, stopped during the second: the first is not done again, and the figures are those of an uncut one."""
    folder, _ = imagenet
    fill(folder / "imagenetv2", str, images=4)
    fill(folder / "sketch", lambda one: synsets()[one], images=40)
    given = ["checkpoint=weights.pth", *SETTINGS, "suite=robustness", "suite.sets=[v2,sketch]", "suite.root=."]
    given += ["data.eval_size=160", "data.eval_batch_size=1"]
    run("evaluate.py", *given, "output_dir=uncut", cwd=folder)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *given, "output_dir=cut"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = folder / "cut" / "v2" / "metrics.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode == 75 and not (folder / "cut" / "sketch" / "metrics.json").exists()
    written = first.stat().st_mtime_ns
    run("evaluate.py", *given, "output_dir=cut", cwd=folder)
    assert first.stat().st_mtime_ns == written
    for name in ("v2", "sketch"):
        for file in ("predictions.csv", "per_class.csv"):
            assert (folder / "cut" / name / file).read_bytes() == (folder / "uncut" / name / file).read_bytes()


def test_certificate(imagenet):
    folder, _ = imagenet
    run("evaluate.py", *SUBSET, "certificate=true", "output_dir=out", cwd=folder)
    found = json.loads((folder / "out" / "certificate.json").read_text())
    assert found.keys() == {"pil", "tensors", "dali_cpu"}
    assert found["pil"]["top1"] == figures(folder / "out")["top1"]
    assert found["pil"]["largest_change_of_confidence"] == 0
    assert found["tensors"]["largest_change_of_confidence"] > 0  # another resizing
    assert found["tensors"]["largest_change_of_confidence"] == found["dali_cpu"]["largest_change_of_confidence"]
    assert len(found["tensors"]["other_class"]) <= 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["checkpoint=[]"], "checkpoint=[] is empty"),
        (["checkpoint=[weights.pth,weights.pth]"], "weights.pth is given twice"),
        (["data.eval_size=[32,32]"], "must be a size, or a list of different sizes"),
        (["predictions=[xml]"], "predictions=[xml] must be"),
        (["average.images=0"], "average.images=0 must be at least 1"),
        (["suite=v3"], "suite=v3 is unknown"),
        (["data.preprocessing=own"], "data.preprocessing=own is for torchvision's and timm's models"),
        (["backbone=resnet50"], "does not fit the model"),
        (["suite.sets=[v9]", "suite=v2"], "suite.sets: v9 unknown"),
        (["data.classes=some"], "data.classes=some is unknown"),
    ],
)
def test_bad_input_is_one_line(imagenet, given, message):
    folder, _ = imagenet
    done = run("evaluate.py", *SUBSET, "output_dir=out", *given, cwd=folder, code=2)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (folder / "out" / "metrics.json").exists()


def test_other_classes_than_the_checkpoints_are_refused(uncut, digits, tmp_path):
    """As many classes with other names: the first of each side. Some of its classes, by their names: evaluated."""
    shutil.copytree(digits / "val", tmp_path / "set" / "val")
    (tmp_path / "set" / "val" / "3").rename(tmp_path / "set" / "val" / "cat")
    last = f"checkpoint={uncut(1)}/checkpoints/last.pt"
    done = run("evaluate.py", last, "data.root=set", "output_dir=out", cwd=tmp_path, code=2)
    assert "only the model has 3, only the set cat; evaluate it on images of its own classes" in done.stderr
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "set" / "val" / "cat")
    shutil.rmtree(tmp_path / "set" / "val" / "0")
    run("evaluate.py", last, "data.root=set", "data.classes=subset", "output_dir=some", cwd=tmp_path)
    run("evaluate.py", last, "output_dir=all", cwd=tmp_path)
    kept = {row["file"]: row for row in rows(tmp_path / "all" / "predictions.csv") if row["file"][0] not in "03"}
    few = {row["file"]: row for row in rows(tmp_path / "some" / "predictions.csv")}
    assert few.keys() == kept.keys() and figures(tmp_path / "some")["classes"] == "8 of 10"
    for name, row in few.items():
        assert (row["label"], row["top1"]) == (kept[name]["label"], kept[name]["top1"])
