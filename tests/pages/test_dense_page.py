"""The page of a detector's or a segmenter's evaluation holds what the files say."""

import json

import numpy as np
import pytest
import torch
from browser import chromium, needs_chromium
from PIL import Image

from cotnet.dense.metrics import segmentation_figures
from cotnet.errors import InputError
from cotnet.evaluation.dense_files import PICTURES, write_classes, write_picture_list
from cotnet.pages.blocks import Chart, DataTable, Gallery, Remarks, Tiles
from cotnet.pages.dense_page import COCO_FIGURES, dense_page
from cotnet.pages.folders import pages_of, write_reports
from cotnet.pages.read import read_json

GIVEN = {"checkpoint": "runs/a/best.pt", "weights": "ema", "images": 5000, "data_root": "sets/coco", "duration": 75.0}


def blocks(page, kind):
    return {getattr(one, "title", ""): one for part in page.sections for one in part.blocks if isinstance(one, kind)}


def tiles(page):
    return {one.name: one.value for one in blocks(page, Tiles)[""].tiles}


def page_of(folder, **content):
    (folder / "metrics.json").write_text(json.dumps(GIVEN | content))
    (make,) = pages_of(folder).values()
    return make()


def draw(folder, files):
    path = folder / PICTURES
    path.parent.mkdir()
    for number, _ in enumerate(files):
        Image.fromarray(np.full((20, 40, 3), 50 * number, dtype=np.uint8)).save(path.parent / f"{number}.png")
    write_picture_list(folder, [(file, f"{number}.png", f"{file}. A cat.") for number, file in enumerate(files)])


def detector(categories=3, **more):
    figures = {f"{kind}_{key}": 10.0 + number for kind in ("box", "mask") for number, key in enumerate(COCO_FIGURES)}
    each = [{"name": f"c{one}", "box_ap": float(one), "mask_ap": one / 2} for one in range(categories)]
    each[0] |= {"box_ap": None, "mask_ap": None}
    return {"task": "detection", "head": "mask_rcnn", **figures, "box_ap_large": None, "categories": each, **more}


def test_a_detector(tmp_path):
    draw(tmp_path, ["a.jpg", "b.jpg"])
    given = detector(dropped={"boxes of no area": 3, "polygons of two points": 0}, settings={"eval_short_side": 800})
    page = page_of(tmp_path, **given)
    assert page.title == "runs/a/best.pt (ema), mask_rcnn" and page.kind == "evaluation"
    assert [one.title for one in page.sections] == ["Result", "Pictures", "Categories", "Settings"]
    assert tiles(page) == {
        "box AP": "10.00 %", "box AP50": "11.00 %", "box AP75": "12.00 %",
        "mask AP": "10.00 %", "mask AP50": "11.00 %", "mask AP75": "12.00 %", "images": "5,000", "time": "1:15",
    }  # fmt: skip
    table = blocks(page, DataTable)["COCO's figures"]
    assert [column.heading for column in table.columns] == ["figure", "box %", "mask %"]
    assert [row[1:] for row in table.rows] == [[given[f"box_{key}"], given[f"mask_{key}"]] for key in COCO_FIGURES]
    assert len(table.rows) == 12 and table.columns[1].text(table.rows[5][1]) == "–"
    drawn = blocks(page, Chart)["box AP of each class"]
    assert [(row["name"], row["value"]) for row in drawn.spec["data"]["values"]] == [("c2", 2.0), ("c1", 1.0)]
    assert drawn.alt == "box AP of each class: from c2, 2.0 %, down to c1, 1.0 %."
    assert blocks(page, DataTable)["Each class"].rows == [["c0", None, None], ["c1", 1.0, 0.5], ["c2", 2.0, 1.0]]
    assert blocks(page, Remarks)["Read this"].lines == ["Left out: 3 boxes of no area."]
    shown = blocks(page, Gallery)["Beside the truth"]
    assert [(one.lines, one.alt) for one in shown.pictures] == [([f"{a}.jpg"], f"{a}.jpg. A cat.") for a in "ab"]
    assert all(one.source.startswith("data:image/webp") for one in shown.pictures) and shown.wide
    assert dict(blocks(page, DataTable)["Settings"].rows)["eval_short_side"] == "800"
    write_reports(tmp_path)
    assert "average precision" in (tmp_path / "report.html").read_text()


def test_a_detector_without_masks_of_many_classes(tmp_path):
    given = {key: value for key, value in detector(81).items() if not key.startswith("mask")}
    given["categories"] = [{"name": one["name"], "box_ap": one["box_ap"]} for one in given["categories"]]
    page = page_of(tmp_path, **given)
    assert [column.heading for column in blocks(page, DataTable)["COCO's figures"].columns] == ["figure", "box %"]
    (drawn,) = blocks(page, Chart).values()
    assert drawn.title == "box AP of the best and the worst 20 classes"
    names = [row["name"] for row in drawn.spec["data"]["values"]]
    assert names == [f"c{one}" for one in (*range(80, 60, -1), *range(20, 0, -1))]
    assert len(blocks(page, DataTable)["Each class"].rows) == 81


def segmenter(folder, classes=3):
    confusion = torch.randint(1, 1000, (classes, classes), generator=torch.Generator().manual_seed(0))
    confusion[-1] = 0
    total, each = segmentation_figures(confusion, [f"s{one}" for one in range(classes)])
    write_classes(folder, each, confusion)
    return confusion, {"task": "segmentation", "head": "semantic_fpn", **total, "classes": each}


def test_a_segmenter(tmp_path):
    confusion, given = segmenter(tmp_path)
    page = page_of(tmp_path, **given)
    assert [one.title for one in page.sections] == ["Result", "Classes", "Confusion", "Settings"]
    assert tiles(page)["mIoU"] == f"{given['miou']:.2f} %"
    assert tiles(page)["pixel accuracy"] == f"{100 * int(confusion.trace()) / int(confusion.sum()):.2f} %"
    assert blocks(page, DataTable)["Each class"].rows[2] == ["s2", 0.0, None]
    cells = blocks(page, Chart)["Confusion of classes"].spec["data"]["values"]
    assert len(cells) == 6  # no share of a class without pixels
    for cell in cells:
        row, column = int(cell["y"][1:]), int(cell["x"][1:])
        assert cell["count"] == int(confusion[row, column])
        assert cell["share"] == cell["count"] / int(confusion[row].sum())
    pairs = blocks(page, DataTable)["Confused classes"].rows
    assert [row[2] for row in pairs] == sorted((row[2] for row in pairs), reverse=True)
    assert {(row[0], row[1]): row[3] for row in pairs} == {
        (f"s{a}", f"s{b}"): int(confusion[a, b]) for a in range(2) for b in range(3) if a != b
    }
    assert f"{pairs[0][2]:.1%} of {pairs[0][0]} are taken for {pairs[0][1]}" in (
        blocks(page, Chart)["Confusion of classes"].alt
    )


def test_a_segmenter_of_many_classes(tmp_path):
    _, given = segmenter(tmp_path, 40)
    page = page_of(tmp_path, **given)
    assert "Confusion of classes" not in blocks(page, Chart)
    table = blocks(page, DataTable)["Confused classes"]
    assert (len(table.rows), table.note) == (200, f"The first 200 of {39 * 39:,} pairs.")


def test_damaged_files_are_said_in_a_line(tmp_path):
    _, given = segmenter(tmp_path)
    with pytest.raises(InputError, match=r"metrics\.json: task=pose is none of detection, segmentation"):
        page_of(tmp_path, **{**given, "task": "pose"})
    with pytest.raises(InputError, match=r"metrics\.json lacks classes, miou; evaluate again"):
        page_of(tmp_path, **{key: value for key, value in given.items() if key not in ("miou", "classes")})
    for text in ("class,s0,s1\ns0,1,x\n", "a,b\n1,2\n", "class,s0,s1\ns0,1\n"):
        (tmp_path / "confusion.csv").write_text(text)
        with pytest.raises(InputError, match=r"confusion\.csv: is no table of pixels by class"):
            page_of(tmp_path, **given)
    (tmp_path / "confusion.csv").unlink()
    content = read_json(tmp_path / "metrics.json")
    assert "Confusion" not in [one.title for one in dense_page(tmp_path, content).sections]


@pytest.mark.slow
@needs_chromium
def test_the_pages_in_a_browser(tmp_path):
    """No error and no request; every chart is drawn; nothing is wider than a small screen."""
    for name in ("detector", "segmenter"):
        (tmp_path / name).mkdir()
        draw(tmp_path / name, ["a.jpg"])
        given = detector() if name == "detector" else segmenter(tmp_path / name, 20)[1]
        (tmp_path / name / "metrics.json").write_text(json.dumps(GIVEN | given))
        write_reports(tmp_path / name)
    with chromium(tmp_path / "profile") as tab:
        for name, charts, squares in (("detector", 1, 2), ("segmenter", 2, 20 + 19 * 20)):
            page = tmp_path / name / "report.html"
            tab.open(page, dark=name == "detector")
            assert (tab.errors, tab.requests) == ([], [page.absolute().as_uri()])
            assert tab.js("document.querySelectorAll('figure.chart svg').length") == charts
            assert tab.js("document.querySelectorAll('.mark-rect.role-mark > path').length") == squares
            assert tab.js("[...document.querySelectorAll('.gallery img')].every(one => one.naturalWidth > 30)")
            tab.open(page, width=390, height=800)
            assert tab.js("document.documentElement.scrollWidth") <= 390
