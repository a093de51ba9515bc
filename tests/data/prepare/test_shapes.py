import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle
from pycocotools.coco import COCO

from data.prepare.__main__ import main


def make(out, *more, images=12, val=4, size=96):
    return main(["shapes", "--out", str(out), "--images", str(images), "--val", str(val), "--size", str(size), *more])


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "shapes"
    assert make(folder) == 0
    return folder


def test_every_call_draws_the_same_and_says_what(tmp_path, out, capsys):
    assert make(tmp_path / "again") == 0
    counts = "12 training and 4 validation images"
    what = f"{counts}; coco: objects of 4 categories, ade: label maps of 6 classes"
    assert capsys.readouterr().out == f"{tmp_path}/again: {what}\n"
    assert content(tmp_path / "again") == content(out)
    assert len(content(out)) == 2 * 16 + 16 + 2 + 2  # images of both, maps, annotations, the table and the record
    assert make(tmp_path / "again") == 0
    assert capsys.readouterr().out == f"{tmp_path}/again: already there ({what})\n"


def test_another_folder_is_not_overwritten(tmp_path, out, capsys):
    before = content(out)
    assert make(out, images=13) == 2
    line = f"{out}: holds something else than this set; remove it or give another --out\n"
    assert capsys.readouterr().err == line
    assert content(out) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert make(tmp_path) == 2
    assert make(tmp_path / "notes.txt") == 2
    assert make(tmp_path / "small", size=16) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"{tmp_path}/notes.txt: a file; give a folder as --out",
        "--size 16: the objects need at least 32 pixels",
    ]


def test_a_killed_run_is_redone(tmp_path, out):
    (tmp_path / "set.partial" / "coco").mkdir(parents=True)
    (tmp_path / "set").mkdir()  # an empty folder is taken
    assert make(tmp_path / "set") == 0
    assert content(tmp_path / "set") == content(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.lock", "set"]


def test_outlines_boxes_and_label_maps_agree(out):
    shapes = set()
    for split, part in (("train", "training"), ("val", "validation")):
        coco = COCO(str(out / "coco" / "annotations" / f"instances_{split}2017.json"))
        for number, image in coco.imgs.items():
            pixels = np.asarray(Image.open(out / "coco" / f"{split}2017" / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
            name = f"ADE_{split}_{number:08d}"
            ade = out / "ade" / "ADEChallengeData2016"
            assert np.array_equal(pixels, np.asarray(Image.open(ade / "images" / part / f"{name}.jpg")))
            labels = np.asarray(Image.open(ade / "annotations" / part / f"{name}.png"))
            shapes.add(labels.shape)
            assert labels.shape == pixels.shape[:2] and 0 < (labels == 0).mean() < 0.03
            union = np.zeros(labels.shape, bool)
            for each in coco.imgToAnns[number]:
                mask = coco.annToMask(each) > 0
                union |= mask
                assert each["iscrowd"] == isinstance(each["segmentation"], dict)
                box = oracle.toBbox(coco.annToRLE(each))
                assert (
                    np.abs(np.subtract(box, each["bbox"])).max() <= 2.5
                )  # the tip of a triangle is thinner than a pixel
                assert abs(mask.sum() - each["area"]) < 0.15 * each["area"]
                assert (labels[mask] == each["category_id"]).mean() > 0.7  # others may cover a part
                assert each["iscrowd"] or 10 < max(each["bbox"][2:]) <= 49
            assert ((labels >= 1) & (labels <= 4))[~union].mean() < 0.03
            assert (labels[union] <= 4).sum() >= 0.95 * union.sum()
        counts = [len(coco.imgToAnns[number]) for number in coco.imgs]
        assert counts[1] == 0 and min(counts[2:]) >= 1 and max(counts) <= 6
        assert sum(each["iscrowd"] for each in coco.anns.values()) == 1
    assert {height > width for height, width in shapes} == {True, False}
    assert json.loads((out / "shapes.json").read_text()) == {"train": 12, "val": 4, "size": 96}
