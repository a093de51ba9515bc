"""The test sets in their authors' layouts, miniature, each with a known answer."""

import csv
import json
from pathlib import Path

import miniature
import numpy as np
import pytest
import torch
from miniature import SETTINGS, fill
from programs import run

from cotnet.evaluation import suites
from cotnet.evaluation.suites import synsets
from cotnet.pages.blocks import DataTable
from cotnet.pages.evaluation_page import evaluation_page

pytestmark = pytest.mark.slow
A_R = json.loads(suites.asset("imagenet_a_r.json"))
OBJECTNET = json.loads(suites.asset("objectnet_folder_to_imagenet_indices.json"))


def evaluated(tmp_path: Path, *given: str, code: int = 0, name: str = "out") -> dict:
    if not (tmp_path / "weights.pth").exists():
        miniature.save_weights(tmp_path / "weights.pth")
    done = run(
        "evaluate.py", "checkpoint=weights.pth", *SETTINGS, *given, f"output_dir={name}", cwd=tmp_path, code=code
    )
    return {
        "stderr": done.stderr,
        "stdout": done.stdout,
        **(json.loads((tmp_path / name / "metrics.json").read_text()) if code != 2 else {}),
    }


def put_val(root: Path, **given) -> int:
    return fill(root / "val", lambda one: synsets()[one], names="ILSVRC2012_val_{:08d}.png", **given)


def test_numbered_folders_are_numbers_and_not_names(tmp_path):
    """V2: "10" sorts before "2". The classes of the images span one to three digits."""
    folder = tmp_path / "sets" / "imagenetv2-matched-frequency-format-val"
    right = fill(folder, str, images=30)
    lengths = {len(path.name) for path in folder.iterdir()}
    assert len(lengths) > 1
    found = evaluated(tmp_path, "suite=v2", "suite.root=sets")
    assert found["images"] == 30
    assert found["top1"] == pytest.approx(100 * right / 30)
    assert found["set"] == "v2" and found["classes"] == f"{len(list(folder.iterdir()))} of 1000"
    assert evaluated(tmp_path, "suite=v2", f"suite.root={folder}", name="own")["top1"] == found["top1"]


def test_sketch(tmp_path):
    right = fill(tmp_path / "imagenet-sketch", lambda one: synsets()[one])
    found = evaluated(tmp_path, "suite=sketch", "suite.root=.")
    assert (found["top1"], found["settings"]["label_space"]) == (pytest.approx(100 * right / 12), 1000)


@pytest.mark.parametrize("name", ["a", "r"])
def test_restricted_label_spaces(tmp_path, name):
    """The right classes come from the 200; over all 1,000 the model would seldom be right. Clean: the val images of the
    200, in the same label space."""
    columns = A_R[name]["indices"]
    assert [synsets()[column] for column in columns] == A_R[name]["wnids"]
    right = fill(tmp_path / "sets" / f"imagenet-{name}", lambda one: synsets()[one], columns=columns)
    clean = put_val(tmp_path / "imagenet", columns=columns, first=20, images=9)
    put_val(tmp_path / "imagenet", columns=[one for one in range(1000) if one not in columns], first=30, images=5)
    found = evaluated(tmp_path, f"suite={name}", "suite.root=sets", "data.root=imagenet", "look=2")["evaluations"]
    assert found[name]["top1"] == pytest.approx(100 * right / 12)
    assert found[name]["settings"]["label_space"] == 200
    assert found[f"{name}-clean"]["images"] == len(list((tmp_path / "imagenet" / "val").glob("*/*"))) - 5
    unrestricted = [miniature.logits(path).argmax() for path in (tmp_path / "sets").rglob("*.png")]
    assert sum(int(one) in columns for one in unrestricted) < 10
    for one in json.loads((tmp_path / "out" / name / "look" / "look.json").read_text())["pictures"]:
        assert one["top1"] in columns and synsets()[one["label"]] == one["file"].partition("/")[0]
    assert clean > 0


def test_real_goes_by_name_and_leaves_out_images_without_labels(tmp_path):
    put_val(tmp_path / "imagenet", images=12)
    labels: list[list[int]] = [[] for _ in range(50_000)]
    expected = []
    for path in sorted((tmp_path / "imagenet" / "val").glob("*/*")):
        number = int(path.stem[-8:])
        best = miniature.logits(path).topk(7).indices.tolist()
        labels[number - 1] = {0: [], 1: [best[6], best[0]], 2: [best[3]], 3: [best[6]]}[number % 4]
        expected += [(number % 4 == 1, number % 4 != 3)] if number % 4 else []
    (tmp_path / "real.json").write_text(json.dumps(labels))
    found = evaluated(tmp_path, "suite=real", "suite.root=.", "data.root=imagenet")
    assert found["images"] == len(expected) == 9
    assert found["top1"] == pytest.approx(100 * np.mean([one for one, _ in expected]))
    assert found["top5"] == pytest.approx(100 * np.mean([five for _, five in expected]))
    assert found["loss"] is None
    (tmp_path / "real.json").write_text(json.dumps(labels[:-1]))
    wrong = evaluated(tmp_path, "suite=real", "suite.root=.", "data.root=imagenet", code=2, name="wrong")
    assert "has labels of 49999 images, not of 50,000" in wrong["stderr"]


def test_timm_ships_the_labels_of_real(tmp_path):
    """Its copy is the authors' file: 57,553 labels, 3,163 images without."""
    val = suites.complete_set(
        tmp_path, ("x/ILSVRC2012_val_00000002.JPEG",), labels=np.zeros(1, dtype=np.int64), classes=synsets()
    )
    (found,) = suites.real(None, val)
    assert found.label_sets == (frozenset({970, 795}),)


@pytest.mark.parametrize("grouped", [False, pytest.param(True, marks=pytest.mark.long)])
def test_corruptions_are_not_resized_and_are_looked_up_by_name(tmp_path, grouped):
    """Both layouts; 19 corruptions, of which 15 count; each with its own error."""
    groups = suites.corruptions()["groups"]
    errors = {}
    for number, name in enumerate(one for group in groups.values() for one in group):
        group = next(group for group, members in groups.items() if name in members)
        wrong = number % 4
        for severity in range(1, 6):
            fill(
                tmp_path / "imagenet-c" / (group if grouped else "") / name / str(severity),
                lambda one: synsets()[one],
                images=4,
                first=severity,
                right=lambda image, wrong=wrong: image >= wrong,
                resize=miniature.SIDE,
            )
        errors[name] = 25.0 * wrong
    found = evaluated(tmp_path, "suite=c", "suite.root=.")
    assert len(found["evaluations"]) == 19
    for name, error in errors.items():
        assert found["evaluations"][f"c/{name}"]["top1"] == pytest.approx(100 - error), name
    snow = found["evaluations"]["c/snow"]
    assert snow["top1_by_severity"] == {str(one): pytest.approx(100 - errors["snow"]) for one in range(1, 6)}
    assert snow["settings"]["crop_ratio"] == 1.0 and "224 px" in snow["comparable"]
    alexnet = suites.corruptions()["alexnet_error"]
    assert len(alexnet) == 15
    expected = np.mean([errors[name] / alexnet[name] for name in alexnet])
    assert found["mce"][str(miniature.SIDE)] == pytest.approx(expected)
    assert suites.mean_corruption_error({name: 100 * error for name, error in alexnet.items()}) == pytest.approx(100)


def test_objectnet_has_a_border_and_several_right_classes(tmp_path):
    columns = sorted({one for right in OBJECTNET.values() for one in right})
    folder_of = {one: name for name, right in OBJECTNET.items() for one in right}
    folder = tmp_path / "objectnet-1.0" / "images"
    right = fill(folder, lambda one: folder_of[one], columns=columns, border=2)
    (folder / "ale_glass").mkdir()  # not in ImageNet
    miniature.pool(64)[0].save(folder / "ale_glass" / "x.png")
    found = evaluated(tmp_path, "suite=objectnet", "suite.root=.", "look=2")
    assert found["top1"] == pytest.approx(100 * right / 12)
    assert (
        found["images"] == 12 and found["settings"]["label_space"] == len(columns) and found["settings"]["border"] == 2
    )
    pictures = json.loads((tmp_path / "out" / "look" / "look.json").read_text())["pictures"]
    assert [one["label"] for one in pictures] == [min(OBJECTNET[one["file"].partition("/")[0]]) for one in pictures]
    assert len(pictures) == 2


def test_some_strengths_of_a_corruption_have_figures_and_no_mce(tmp_path):
    for strength in (2, 5):
        folder = tmp_path / "imagenet-c" / "snow" / str(strength)
        right = fill(folder, lambda one: synsets()[one], images=3, resize=miniature.SIDE)
    found = evaluated(tmp_path, "suite=c", "suite.root=.")
    assert found["top1_by_severity"] == {one: pytest.approx(100 * right / 3) for one in ("2", "5")}
    assert "mce" not in found


def test_published_weights_read_a_val_split_in_numbered_folders_by_number(tmp_path):
    """All 1,000 folders: sorted as text, nearly every label would be another class."""
    val = tmp_path / "imagenet" / "val"
    right = fill(val, str)
    for number in range(1000):
        if not (val / str(number)).exists():
            (val / str(number)).mkdir()
            miniature.pool(64)[number % 64].save(val / str(number) / "x.png")
    found = evaluated(tmp_path, "data.root=imagenet")
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["label"] == row["file"].split("/")[0] for row in rows)
    assert sum(int(row["correct"]) for row in rows if not row["file"].endswith("x.png")) == right
    assert found["top1"] == pytest.approx(100 * np.mean([row["top1"] == row["label"] for row in rows]))


def test_robustness_is_what_is_found(tmp_path):
    fill(tmp_path / "sketch", lambda one: synsets()[one], images=4)
    fill(tmp_path / "imagenetv2-top-images", str, images=4)
    put_val(tmp_path / "imagenet", images=4)
    found = evaluated(tmp_path, "suite=robustness", "suite.root=.")["evaluations"]
    assert found.keys() == {"imagenet", "real", "v2-top-images", "sketch"}
    few = evaluated(tmp_path, "suite=sketch", "suite.root=.", "suite.images=2", name="few")
    assert few["images"] == 2 and few["images_in_set"] == 2
    several, one = evaluation_page(tmp_path / "out"), evaluation_page(tmp_path / "few")
    (table,) = [block for block in several.sections[0].blocks if isinstance(block, DataTable)]
    assert {row[0]: row[3] for row in table.rows} == {name: figures["top1"] for name, figures in found.items()}
    assert all((tmp_path / "out" / link).exists() for link in table.links)
    adds, latency = [block for section in one.sections if section.title == "Speed" for block in section.blocks]
    ours = [row for row in adds.spec["data"]["values"] if row["kind"] == "this evaluation"]
    assert [(row["x"], row["y"]) for row in ours] == [(few["multiply_adds"] / 1e9, few["top1"])]
    drawn = [row["x"] for row in latency.spec["data"]["values"] if row["kind"] == "this evaluation"]
    assert drawn == [few["latency_ms_p50"]] or f"ran on {few['device']} and is not drawn" in latency.alt


@pytest.mark.parametrize(
    ("folders", "suite", "message"),
    [
        (["imagenetv2/1/x.png", "imagenetv2/cat/x.png"], "v2", "1, cat"),
        (["imagenet-a/n01440764/x.png"], "a", "1 of 1 folders are no classes of the model, among them n01440764"),
        (["imagenet-c/dust/1/n01440764/x.png"], "c", "holds none of ImageNet-C's corruptions, such as gaussian_noise"),
        (["objectnet/ale_glass/x.png"], "objectnet", "it has ale_glass, expected are alarm_clock, backpack"),
        (["imagenet-c/snow/6/n01440764/x.png"], "c", "snow: holds none of the strengths 1 to 5"),
        (
            ["imagenetv2/1/x.png", "imagenetv2/1000/x.png"],
            "v2",
            "1 of 2 folders are no classes of the model, among them 1000",
        ),
        (["elsewhere/x.png"], "robustness", "suite.root=.: none of the suite's files are there"),
    ],
)
def test_sets_in_another_layout_are_refused(tmp_path, folders, suite, message):
    for name in folders:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        miniature.pool(64)[0].save(tmp_path / name)
    found = evaluated(tmp_path, f"suite={suite}", "suite.root=.", code=2)
    assert message in found["stderr"] and found["stderr"].count("\n") == 1


def test_suites_are_for_imagenets_classes(tmp_path):
    torch.save(miniature.models.cotnet_small(num_classes=10).state_dict(), tmp_path / "weights.pth")
    found = evaluated(tmp_path, "suite=v2", "suite.root=.", "backbone.num_classes=10", code=2)
    assert "suite=v2 is for models of ImageNet's 1,000 classes; this one has 10" in found["stderr"]
