"""Pictures of detections and segmentations, and the files beside them."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from cotnet.dense.metrics import box_and_mask_figures, segmentation_figures
from cotnet.evaluation.dense_files import write_classes, write_predictions
from cotnet.evaluation.dense_pictures import (
    coco_objects,
    color,
    detection_panels,
    draw_detections,
    draw_segmentation,
    iou,
    segmentation_panels,
)
from cotnet.evaluation.picture_sheet import draw_sheet, ink

NAMES = {4: "cat", 9: "dog", 2: "猫 $x_1^"}
SIZE = (40, 60)


def grey():
    return torch.full((3, *SIZE), 120, dtype=torch.uint8)


def run_lengths(box):
    x, y, width, height = box
    shape = np.zeros(SIZE, dtype=np.uint8)
    shape[y : y + height, x : x + width] = 1
    found = mask.encode(np.asfortranarray(shape))
    return {**found, "counts": found["counts"].decode()}


def scene():
    """A cat that is found, a dog that is taken for a cat, a crowd of cats with two detections in it."""
    truth = [
        {"category_id": 4, "bbox": [5, 20, 15, 15], "segmentation": [[5, 20, 20, 20, 20, 35, 5, 35]], "iscrowd": 0},
        {"category_id": 9, "bbox": [25, 22, 10, 10], "segmentation": run_lengths([25, 22, 10, 10]), "iscrowd": 0},
        {"category_id": 4, "bbox": [40, 5, 20, 30], "iscrowd": 1,
         "segmentation": {"size": list(SIZE), "counts": [40 * 40, 40 * 20]}},
    ]  # fmt: skip
    found = [
        {"category_id": 4, "bbox": [26, 22, 10, 10], "score": 0.55, "segmentation": run_lengths([26, 22, 10, 10])},
        {"category_id": 4, "bbox": [6, 20, 14, 15], "score": 0.95, "segmentation": run_lengths([6, 20, 14, 15])},
        {"category_id": 4, "bbox": [41, 6, 6, 6], "score": 0.75, "segmentation": run_lengths([41, 6, 6, 6])},
        {"category_id": 4, "bbox": [50, 6, 6, 6], "score": 0.65, "segmentation": run_lengths([50, 6, 6, 6])},
        {"category_id": 9, "bbox": [1, 1, 5, 5], "score": 0.45, "segmentation": run_lengths([1, 1, 5, 5])},
    ]
    return coco_objects(found, NAMES, SIZE), coco_objects(truth, NAMES, SIZE)


def test_objects_of_coco():
    """Polygons, compressed and plain run lengths; colours by the order of the category ids."""
    _, truth = scene()
    assert [one.mask.sum() for one in truth] == [15 * 15, 10 * 10, 20 * 40]
    assert truth[2].mask[:, 40:].all() and truth[0].mask[20:35, 5:20].all()
    assert [(one.name, one.number, one.crowd) for one in truth] == [
        ("cat", 1, False), ("dog", 2, False), ("cat", 1, True)
    ]  # fmt: skip


def test_detections_beside_the_truth():
    panels, alt = detection_panels(grey(), *scene())
    assert [one.caption for one in panels] == ["predicted: 4, 1 wrong", "truth: 3, 1 missed"]
    ours, theirs = ([(frame.text, frame.dashed) for frame in one.frames] for one in panels)
    assert ours == [("cat 0.95", False), ("cat 0.75", False), ("cat 0.65", False), ("cat 0.55", True)]
    assert theirs == [("cat", False), ("dog", True), ("cat (crowd)", False)]
    assert alt == (
        "Predicted with a score of at least 0.5: cat 0.95, cat 0.75, cat 0.65, cat 0.55; 1 wrong. "
        "The truth: 2 cat, 1 dog; 1 missed."
    )
    painted = panels[0].pixels
    expected = np.rint(0.55 * 120 + 0.45 * np.array([int(color(1)[a : a + 2], 16) for a in (1, 3, 5)]))
    assert painted[28, 12].tolist() == expected.tolist()  # in the cat
    assert painted[3, 3].tolist() == [120] * 3  # below the least score


def test_an_image_without_anything():
    panels, alt = detection_panels(grey(), [], [])
    assert [one.caption for one in panels] == ["predicted: 0", "truth: 0"]
    assert alt == "Predicted with a score of at least 0.5: nothing; 0 wrong. The truth: no object; 0 missed."


def test_overlap():
    assert iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (5, 0, 100, 100), crowd=True) == 0.5
    assert iou((0, 0, 10, 10), (20, 0, 10, 10)) == iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_segmentation_beside_the_truth():
    truth = torch.zeros(SIZE, dtype=torch.int64)
    truth[:, 30:], truth[:10] = 1, 255
    predicted = truth.clone()
    predicted[:10], predicted[10:25, :10] = 2, 2
    panels, alt = segmentation_panels(grey(), predicted, truth, ["sky", "sea", "sand"])
    right = 100 * (1 - 150 / (30 * 60))
    assert alt == f"Classes predicted beside the truth (sky, sea); {right:.1f} % of the pixels are right."
    assert [one.caption for one in panels] == ["predicted", "truth", "wrong pixels, 8.3 %"]
    assert panels[0].legend == {"sea": color(1), "sky": color(0), "sand": color(2)}  # the largest first
    ours, theirs, wrong = (one.pixels.astype(int) for one in panels)
    assert theirs[5, 5].tolist() == [120] * 3 and ours[5, 5].tolist() != [120] * 3
    assert (ours[30, 40] == theirs[30, 40]).all() and (ours[12, 5] != theirs[12, 5]).any()
    red = wrong[..., 0] > wrong[..., 1] + 50
    assert red.sum() == 150 and red[10:25, :10].all()
    nothing = segmentation_panels(grey(), predicted, torch.full(SIZE, 255), ["sky", "sea", "sand"])[1]
    assert "nothing labelled" in nothing


@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_pngs(tmp_path):
    """Each panel is there, in the colours of the image, and no sign in a name breaks it."""
    found, truth = scene()
    objects = coco_objects([{"category_id": 2, "bbox": [-5, -5, 90, 20], "score": 1.0}], NAMES, SIZE)
    alt = draw_detections(tmp_path / "one.png", grey(), [*found, *objects], truth, title="$x_1^ <b> " + "long " * 40)
    assert alt.endswith("1 missed.") and NAMES[2] in alt
    classes = torch.zeros(SIZE, dtype=torch.int64)
    draw_segmentation(tmp_path / "two.png", grey(), classes, classes, names=["sky"], title="a.png")
    draw_sheet(tmp_path / "three.png", [detection_panels(grey(), found, truth)[0]] * 3, title="three", across=2)
    shapes = {"one": (1, 2), "two": (1, 3), "three": (2, 4)}
    for name, (rows, columns) in shapes.items():
        with Image.open(tmp_path / f"{name}.png") as png:
            drawn = np.asarray(png.convert("RGB")).astype(int)
        for row in range(rows):
            for column in range(columns if name != "three" or row == 0 else 2):
                middle = drawn[int((row + 0.6) * drawn.shape[0] / rows), int((column + 0.5) * drawn.shape[1] / columns)]
                assert middle.min() < 250  # not the paper
    with Image.open(tmp_path / "one.png") as png:
        left = np.asarray(png.convert("RGB")).astype(int)
    assert (np.abs(left - [120, 120, 120]).max(2) < 3).mean() > 0.3


def test_text_is_readable_on_every_colour():
    for number in range(150):
        paper = np.array([int(color(number)[a : a + 2], 16) for a in (1, 3, 5)])
        text = 0 if ink(color(number)) == "black" else 255
        assert abs(paper @ [0.299, 0.587, 0.114] - text) > 110
    assert len({color(number) for number in range(150)}) == 150


def test_predictions_are_read_by_pycocotools(tmp_path):
    truth = {
        "images": [{"id": 7, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 4, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 4, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0,
                         "segmentation": run_lengths([5, 5, 20, 20])}],
    }  # fmt: skip
    results = [{"image_id": 7, "category_id": 4, "bbox": [5.123, 5.0, 20.0, 20.25], "score": 0.8999999761581421,
                "segmentation": run_lengths([5, 5, 20, 20])}]  # fmt: skip
    path = write_predictions(tmp_path, results)
    assert json.loads(path.read_text()) == results
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    found = COCO(tmp_path / "truth.json").loadRes(str(path))
    assert [one["score"] for one in found.anns.values()] == [results[0]["score"]]
    assert box_and_mask_figures(truth, json.loads(path.read_text()), masks=True).total["mask_ap"] == 100.0


def test_files_of_a_segmentation(tmp_path):
    confusion = torch.tensor([[6, 2, 0], [1, 7, 0], [0, 0, 0]])
    figures = segmentation_figures(confusion, ["sky", "sea, deep", "sand"])
    write_classes(tmp_path, figures.each, confusion)
    with (tmp_path / "confusion.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["class", "sky", "sea, deep", "sand"],
            *[[row["name"], *map(str, counts)] for row, counts in zip(figures.each, confusion.tolist(), strict=True)],
        ]
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["iou"] for row in rows] == [str(100 * 6 / 9), "70.0", ""]
    assert [row["accuracy"] for row in rows] == ["75.0", "87.5", ""]
