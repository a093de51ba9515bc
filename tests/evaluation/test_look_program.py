"""`python -m cotnet.look`, and evaluate.py's pictures of its most confident mistakes."""

import json
import shutil
from pathlib import Path

import miniature
import numpy as np
import pytest
import timm
import torch
from miniature import SETTINGS, fill, rows
from PIL import Image
from programs import run, run_process

from cotnet.evaluation.suites import synsets

pytestmark = pytest.mark.slow
FIGURES = ("predictions.csv", "per_class.csv", "confusions.csv")


def last(uncut) -> str:
    return f"checkpoint={uncut(1)}/checkpoints/last.pt"


def pictures(folder: Path) -> list[dict]:
    return json.loads((folder / "look" / "look.json").read_text())["pictures"]


def figures(folder: Path) -> dict:
    """metrics.json without what depends on the clock."""
    found = miniature.figures(folder)
    for name in ("images_per_second", "latency_ms_p50", "latency_ms_p95", "peak_memory_mib"):
        del found[name]
    return found


def test_a_picture_of_each_image(uncut, digits, tmp_path):
    """As a person starts it; class and probability are those of evaluate.py."""
    shutil.copytree(digits / "val" / "3", tmp_path / "some" / "3")
    done = run_process("-m", "cotnet.look", last(uncut), "images=some", "output_dir=out", cwd=tmp_path)
    files = sorted(path.relative_to(tmp_path / "some") for path in (tmp_path / "some").rglob("*.png"))
    names = [f"{number:04}-{file.stem}.png" for number, file in enumerate(files, start=1)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names and len(names) == 5
    run("evaluate.py", last(uncut), "images=some", "precision=fp32", "output_dir=evaluation", cwd=tmp_path)
    table = rows(tmp_path / "evaluation" / "predictions.csv")
    assert [row["file"] for row in table] == [str(file) for file in files]
    expected = [
        f"out/{name}: {row['class1']} ({100 * float(row['p1']):.1f} %)" for name, row in zip(names, table, strict=True)
    ]
    assert done.stdout.splitlines() == expected and done.stderr == ""
    sizes = {Image.open(tmp_path / "out" / name).size for name in names}
    assert sizes == {(800, 490)}


def test_a_position_and_a_list_of_images(uncut, digits, tmp_path):
    """The kernels are those of the position; raw weights are not the averaged ones."""
    one = next((digits / "val" / "5").iterdir())
    drawn = {}
    for given in (["position=[0,0]"], ["position=[1,1]"], ["position=[0,0]", "weights=raw"]):
        run("cotnet.look", last(uncut), f"images=[{one}]", *given, "output_dir=out", cwd=tmp_path)
        with Image.open(tmp_path / "out" / f"0001-{one.stem}.png") as png:
            drawn[given[-1]] = np.asarray(png.convert("L")).astype(float)
    at_the_corner, at_the_other, raw = drawn.values()
    kernels = np.s_[290:480, 600:790]  # of the last stage
    assert np.abs(at_the_corner[kernels] - at_the_other[kernels]).max() > 50
    network_sees = np.s_[60:250, 60:190]  # not the box
    assert (at_the_corner[network_sees] == at_the_other[network_sees]).all()
    assert (at_the_corner[kernels] != raw[kernels]).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["images=[none.png]"], "images: no file none.png; give a folder, or a list such as [a.jpg,b.jpg]"),
        (["images=nothing"], "images=nothing: no image in it; known endings are .jpg"),
        (["images=[notes.png]"], "notes.png: damaged image (not an image); replace or remove it"),
        (["checkpoint=none.pt"], "no checkpoint at none.pt; give checkpoint=PATH of an existing file"),
        (["checkpoint=runs"], "checkpoint=runs holds 2 runs; give one of them"),
        (["position=[0.5,1.2]"], "position=[0.5,1.2] must be from 0 to 1, or null"),
        (["position=[0.5]"], "position=[0.5] must be null or a list of 2 numbers"),
        (["position=centre"], "position=centre must be null or a list of 2 numbers"),
        (["weights=best"], "weights=best is unknown"),
        (["data.eval_size=[32,48]"], "data.eval_size=[32,48] must be a whole number"),
        (["+precision=fp16"], "precision is not a setting"),
        (["backbone=timm", "backbone.model_name=vit_tiny_patch16_224", "checkpoint=vit.pth"], "no feature map"),
    ],
)
def test_bad_input_is_one_line(given, message, uncut, digits, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "nothing").mkdir()
    for name in ("one", "two"):
        shutil.copytree(uncut(1) / "checkpoints", tmp_path / "runs" / name / "checkpoints")
    if "checkpoint=vit.pth" in given:
        torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    everything = [last(uncut), f"images={digits / 'val' / '3'}", "output_dir=out", *given]
    done = run("cotnet.look", *everything, cwd=tmp_path, code=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not [*tmp_path.glob("out/*.png")]


def test_the_most_confident_mistakes_of_an_evaluation(uncut, tmp_path):
    """The table says which; the figures are the same with and without pictures. Several ranks: test_evaluate.py."""
    common = [last(uncut), "output_dir=out"]
    out, drawn = tmp_path / "out", {}
    for count in (4, 2, 0):  # the pictures of before are gone
        run("evaluate.py", *common, f"look={count}", cwd=tmp_path)
        names = [f"{number:04}.png" for number in range(1, count + 1)] + ["look.json"]
        assert sorted(path.name for path in (out / "look").glob("*")) == (names if count else [])
        assert (out / "look").exists() == (count > 0)
        drawn[count] = pictures(out) if count else []
        tables = {name: (out / name).read_bytes() for name in FIGURES} | {"figures": figures(out)}
        assert drawn.setdefault("tables", tables) == tables
    found = drawn[4]
    assert drawn[2] == found[:2] and len(found) == 4
    wrong = [row for row in rows(out / "predictions.csv") if row["correct"] == "0"]
    wrong.sort(key=lambda row: -float(row["p1"]))
    assert len(wrong) > 4
    for number, (one, row) in enumerate(zip(found, wrong, strict=False), start=1):
        assert one.keys() == {"file", "label", "top1", "p1", "png", "alt"}
        assert (one["file"], one["label"], one["top1"]) == (row["file"], int(row["label"]), int(row["top1"]))
        assert one["p1"] == float(row["p1"]) and one["png"] == f"{number:04}.png"
        taken = f"{row['file']}, an image of class {row['label']}, is taken for {row['top1']} ({100 * one['p1']:.1f} %)"
        assert one["alt"].startswith(taken) and one["alt"].endswith(", beside maps of CoT's local kernels.")
    done = run("evaluate.py", *common, "look=101", cwd=tmp_path, code=2)
    assert done.stderr == "error: look=101 must be from 0 to 100\n"


@pytest.mark.long
def test_pictures_only_where_there_are_mistakes_and_labels(uncut, tmp_path):
    """Published weights: all images right, none labelled, and four mistakes of a fused network."""
    miniature.save_weights(tmp_path / "weights.pth")
    fill(tmp_path / "right" / "val", lambda one: synsets()[one], images=8, right=lambda _: True)
    fill(tmp_path / "imagenet" / "val", lambda one: synsets()[one], images=12)
    given = ["checkpoint=weights.pth", *SETTINGS, "look=6", "data.classes=subset"]
    run("evaluate.py", *given, "data.root=right", "output_dir=right-out", cwd=tmp_path)
    run("evaluate.py", *given, "images=imagenet/val", "output_dir=unlabelled", cwd=tmp_path)
    for name in ("right-out", "unlabelled"):
        assert not (tmp_path / name / "look").exists()
    run("evaluate.py", *given, "data.root=imagenet", "fuse=true", "output_dir=out", cwd=tmp_path)
    found = pictures(tmp_path / "out")
    assert len(found) == 4 and len([*(tmp_path / "out" / "look").glob("*.png")]) == 4
    from torchvision.models import ResNet50_Weights

    words = ResNet50_Weights.DEFAULT.meta["categories"]
    for one in found:
        assert synsets()[one["label"]] == one["file"].partition("/")[0]
        assert f"an image of class {words[one['label']]}, is taken for {words[one['top1']]}" in one["alt"]


def test_a_network_without_a_feature_map_has_no_pictures(tmp_path):
    """One line says so; the exit code is that of the evaluation."""
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.pth")
    fill(tmp_path / "imagenet" / "val", lambda one: synsets()[one], images=3)
    given = ["checkpoint=weights.pth", "backbone=timm", "backbone.model_name=vit_tiny_patch16_224", "precision=fp32"]
    given += ["data.root=imagenet", "data.classes=subset", "loader=torchvision", "loader.threads=0", "look=2"]
    done = run("evaluate.py", *given, "output_dir=out", cwd=tmp_path)
    assert "no pictures of mistakes: backbone: no feature map for Grad-CAM" in done.stdout
    assert figures(tmp_path / "out")["images"] == 3 and not (tmp_path / "out" / "look").exists()
