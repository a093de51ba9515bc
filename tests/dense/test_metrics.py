"""COCO's figures against pycocotools, mean IoU against a loop."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cotnet.dense.evaluation import run_length
from cotnet.dense.masks import drawn
from cotnet.dense.metrics import box_and_mask_figures, confusion_of, segmentation_figures
from cotnet.errors import InputError

COCO_ORDER = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
COCO_ORDER += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
HEIGHT, WIDTH = 160, 200


def ellipse(x, y, width, height):
    """COCO's run lengths of the ellipse in a box."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - x) / width - 0.5) ** 2 + ((rows - y) / height - 0.5) ** 2 <= 0.25
    found = mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {**found, "counts": found["counts"].decode()}


def random_box(random):
    side = random.uniform(8, 140, 2)
    place = random.uniform(0, np.maximum((WIDTH, HEIGHT) - side, 1))
    return [float(value) for value in (*place, *np.minimum(side, (WIDTH, HEIGHT) - place))]


def random_shape(random, box, *, crowd):
    """Run lengths or, not of a crowd, a triangle; and its pixels."""
    x, y, width, height = box
    if crowd or random.random() < 0.7:
        shape = ellipse(*box)
        return shape, float(mask.area(shape))
    corners = [[x, y, x + width, y, x + width / 2, y + height]]
    return corners, float(mask.area(mask.merge(mask.frPyObjects(corners, HEIGHT, WIDTH))))


def random_set(images=30):
    """Annotations of four categories, one without an object, with crowds, polygons and empty images; results near them
    with ties in the scores, false alarms, and images without results."""
    random = np.random.default_rng(5)
    truth = {
        "images": [{"id": 3 * number + 7, "height": HEIGHT, "width": WIDTH} for number in range(images)],
        "categories": [{"id": number, "name": f"thing {number}"} for number in (9, 2, 30, 4)],
        "annotations": [],
    }
    results = []
    for number, image in enumerate(truth["images"]):
        here = {"image_id": image["id"]}
        for _ in range(0 if number % 7 == 3 else random.integers(1, 9)):
            box, crowd = random_box(random), int(random.random() < 0.15)
            shape, area = random_shape(random, box, crowd=crowd)
            given = {**here, "category_id": int(random.choice([2, 4, 9])), "bbox": box, "iscrowd": crowd, "area": area}
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, **given, "segmentation": shape})
            for _ in range(0 if number % 7 == 5 else random.integers(0, 4)):
                near = np.array(box) + random.normal(0, 4, 4)
                near[2:] = np.maximum(near[2:], 3)
                results.append({**here, "category_id": given["category_id"], "bbox": near.tolist()})
        for _ in range(0 if number % 7 == 5 else random.integers(0, 6)):
            results.append({**here, "category_id": int(random.choice([2, 4, 9, 30])), "bbox": random_box(random)})
    for row in results:
        row |= {"score": round(float(random.random()), 1), "segmentation": ellipse(*row["bbox"])}
    return truth, results


def oracle(truth, results, kind):
    """pycocotools' twelve figures, and its AP of each category."""
    unwanted = "bbox" if kind == "segm" else "segmentation"
    known = COCO()
    known.dataset = copy.deepcopy(truth)
    known.createIndex()
    found = known.loadRes([{key: value for key, value in row.items() if key != unwanted} for row in results])
    evaluation = COCOeval(known, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return evaluation.stats, [precision[:, :, number].mean() for number in range(precision.shape[2])]


def same(ours, theirs):
    return theirs == -1 if ours is None else abs(ours / 100 - theirs) <= 1e-12


def test_figures_are_those_of_pycocotools():
    truth, results = random_set()
    before = copy.deepcopy((truth, results))
    total, each = box_and_mask_figures(truth, results, masks=True)
    assert (truth, results) == before
    assert len({row["score"] for row in results}) < len(results) / 10  # ties
    assert any(one["iscrowd"] for one in truth["annotations"])
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        twelve, categories = oracle(truth, results, kind)
        assert all(same(total[f"{name}_{key}"], value) for key, value in zip(COCO_ORDER, twelve, strict=True))
        assert 0.1 < twelve[0] < 0.9 and len(set(twelve)) > 9
        assert all(same(row[f"{name}_ap"], value) for row, value in zip(each, categories, strict=True))
    assert len(total) == 24
    assert [row["name"] for row in each] == ["thing 2", "thing 4", "thing 9", "thing 30"]  # in the order of the ids
    assert each[-1] == {"name": "thing 30", "box_ap": None, "mask_ap": None}


def test_perfect_results_and_none(tmp_path):
    """Whatever number the first annotation has; pycocotools takes a match with number 0 for none."""
    truth, _ = random_set(12)
    for number, one in enumerate(truth["annotations"]):
        one["id"] = number
    perfect = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for one in truth["annotations"]
        if not one["iscrowd"]
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    total, _ = box_and_mask_figures(tmp_path / "truth.json", perfect, masks=False)
    assert len(total) == 12
    assert [total[f"box_{name}"] for name in ("ap", "ap75", "ap_small", "ar100")] == [100.0] * 4
    total, each = box_and_mask_figures(truth, [], masks=True)
    assert set(total.values()) == {0.0}
    assert [row["mask_ap"] for row in each] == [0.0, 0.0, 0.0, None]
    nothing = {**truth, "annotations": []}
    assert set(box_and_mask_figures(nothing, perfect, masks=False).total.values()) == {None}


def test_mean_iou_is_that_of_a_loop():
    random, classes = np.random.default_rng(2), 6
    whole, pairs = torch.zeros(classes, classes, dtype=torch.int64), []
    for _ in range(3):
        target = random.choice([0, 1, 2, 4, 255], (17, 23))
        predicted = np.where(random.random(target.shape) < 0.6, target % 255, random.choice([0, 1, 2, 3], target.shape))
        whole += confusion_of(torch.from_numpy(predicted), torch.from_numpy(target), classes)
        pairs += [(int(a), int(b)) for a, b in zip(target.flat, predicted.flat, strict=True) if a != 255]
    total, each = segmentation_figures(whole, list("abcdef"))
    ious, accuracies = [], []
    for one, row in enumerate(each):
        both = sum(a == b == one for a, b in pairs)
        either, true = sum(one in pair for pair in pairs), sum(a == one for a, _ in pairs)
        assert row["iou"] == (100 * both / either if either else None)
        assert row["accuracy"] == (100 * both / true if true else None)
        ious += [row["iou"]] if either else []
        accuracies += [row["accuracy"]] if true else []
    assert (len(ious), len(accuracies)) == (5, 4)  # class d is predicted only, class f is nowhere
    assert each[3] == {"name": "d", "iou": 0.0, "accuracy": None}
    assert total["miou"] == pytest.approx(np.mean(ious), rel=1e-14)
    assert total["class_accuracy"] == pytest.approx(np.mean(accuracies), rel=1e-14)
    assert total["pixel_accuracy"] == 100 * sum(a == b for a, b in pairs) / len(pairs)
    assert int(whole.sum()) == len(pairs)


def test_a_set_without_labels_has_no_figures():
    nothing = confusion_of(torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), 255), 3)
    assert set(segmentation_figures(nothing, list("abc")).total.values()) == {None}


def test_a_missing_extra_is_said_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # as if it were not installed
    truth, results = random_set(2)
    calls = (
        lambda: box_and_mask_figures(truth, results, masks=False),
        lambda: run_length(np.ones((28, 28)), np.array([0.0, 0, 9, 9]), (10, 10)),
        lambda: drawn(results[0]["segmentation"], (HEIGHT, WIDTH)),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"^faster-coco-eval is not installed; pip install 'cotnet\[dense\]'$"):
            call()
