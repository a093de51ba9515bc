import json

import numpy as np
import pytest
from dense_sets import square, write_coco
from pycocotools import mask as oracle
from pycocotools.coco import COCO

from cotnet.dense.coco import read_coco, require_same_categories
from cotnet.errors import DataError
from data.prepare.__main__ import main

CIRCLE = [part for turn in np.linspace(0, 6, 20) for part in (20 + 9.37 * np.cos(turn), 18 + 7.21 * np.sin(turn))]
RUNS = {"size": [60, 40], "counts": [61, 5, 55, 5, 2274]}


def refused(root, *, split="train", masks=True):
    with pytest.raises(DataError) as raised:
        read_coco(root, split, masks=masks)
    line = str(raised.value)
    assert "\n" not in line and str(root) in line
    return line.replace(str(root), "ROOT")


def test_arrays_follow_images_and_ids(tmp_path):
    packed = oracle.encode(np.asfortranarray(np.eye(48, dtype=np.uint8)))
    packed["counts"] = packed["counts"].decode()
    annotations = [
        square(13, 1, 2, 30, category_id=3, segmentation=packed),
        square(11, 3, 4),
        square(12, 5, 6, segmentation=RUNS, iscrowd=1),
        square(13, 7.5, 8.25, 5.5, segmentation=[CIRCLE, [1, 1, 5, 1, 5, 5, 1.5, 6]]),
    ]
    path = write_coco(tmp_path, annotations, split="val")
    found = read_coco(tmp_path, "val", masks=True)
    assert found.files == ("11.png", "12.png", "13.png")
    assert (found.root, found.annotations) == (tmp_path / "val2017", path)
    assert found.sizes.tolist() == [[40, 60], [60, 40], [48, 48]]
    assert found.image_ids.tolist() == [11, 12, 13]
    assert (found.categories, found.category_ids.tolist()) == (("dog", "cat"), [3, 7])
    assert found.dropped == {}
    truth = [found.truth(index) for index in range(3)]
    assert truth[0].boxes.tolist() == [[3, 4, 13, 14]]
    assert [each.labels.tolist() for each in truth] == [[2], [2], [1, 2]]
    assert [each.crowd.tolist() for each in truth] == [[False], [True], [False, False]]
    assert truth[2].boxes.tolist() == [[1, 2, 31, 32], [7.5, 8.25, 13, 13.75]]
    assert truth[2].boxes.dtype == np.float32
    coco = COCO(str(path))
    for index, image in enumerate(found.image_ids.tolist()):
        masks = [coco.annToMask(each) for each in coco.imgToAnns[image]]
        assert np.array_equal(truth[index].masks, np.stack(masks)) and truth[index].masks.any(axis=(1, 2)).all()
    assert read_coco(tmp_path, "val", masks=False).truth(2).masks is None


def test_training_leaves_out_crowds_and_what_has_no_object(tmp_path):
    annotations = [square(11, 3, 4), square(12, 5, 6, segmentation=RUNS, iscrowd=1), square(13, 50, 3)]
    write_coco(tmp_path, annotations)
    found = read_coco(tmp_path, "train", masks=True)
    assert found.files == ("11.png",)
    assert found.image_ids.tolist() == [11] and found.sizes.tolist() == [[40, 60]]
    expected = {
        "parts of boxes outside the image": 1,
        "boxes of no area": 1,
        "crowds": 1,
        "images without an object": 2,
    }
    assert found.dropped == expected


def test_boxes_are_cut_and_bad_outlines_dropped(tmp_path):
    annotations = [
        square(11, -4, 35, 12),
        square(11, 10, 10, bbox=[10, 10, 0, 10]),
        square(11, 10, 10, bbox=[20, 10, -3, 10]),
        square(11, 10, 10, segmentation=[[1, 1, 5, 5]]),
        square(11, 10, 10, segmentation=[[1, 1, 5, 5], [10, 10, 20, 10, 20, 20]]),
        square(11, 10, 10, segmentation=[]),
    ]
    write_coco(tmp_path, annotations)
    found = read_coco(tmp_path, "train", masks=True)
    assert found.truth(0).boxes.tolist() == [[0, 35, 8, 40], [10, 10, 20, 20]]
    assert found.truth(0).masks.sum(axis=(1, 2)).tolist() == [8 * 5, oracle_area([10, 10, 20, 10, 20, 20])]
    assert found.dropped == {
        "parts of boxes outside the image": 1,
        "boxes of no area": 2,
        "polygons of two points": 2,
        "objects without a mask": 2,
        "images without an object": 2,
    }
    plain = read_coco(tmp_path, "train", masks=False)
    assert len(plain.truth(0).boxes) == 4
    assert plain.dropped["boxes of no area"] == 2 and "polygons of two points" not in plain.dropped


def oracle_area(polygon):
    return int(oracle.area(oracle.frPyObjects([polygon], 40, 60))[0])


def test_the_fingerprint_is_of_the_annotations_not_of_the_place(tmp_path):
    for name, x in (("a", 3), ("b", 3), ("c", 4)):
        write_coco(tmp_path / name, [square(11, x, 4)])
    one, same, other = (read_coco(tmp_path / name, "train", masks=name == "a").fingerprint for name in "abc")
    assert one == same != other


@pytest.mark.parametrize(
    ("annotation", "line"),
    [
        ({"image_id": 99}, "annotation 2 is of the unknown image 99; "),
        ({"category_id": 1}, "annotation 2 is of the unknown category 1; "),
        ({"segmentation": RUNS}, "annotation 2: the mask is 60x40, its image 40x60; "),
        ({"segmentation": {"size": [40, 60], "counts": [3, 4]}}, "annotation 2 is malformed (its run lengths do not "),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "annotation 2 is malformed (a polygon with an x without y); "),
        ({"segmentation": [["1", 2, 3, 4, 5, 6]]}, "annotation 2 is malformed (a value of the wrong kind); "),
        ({"bbox": [1, 2, 3]}, "annotation 2 is malformed (a box has four numbers); "),
        ({"bbox": None}, "annotation 2 is malformed (a value of the wrong kind); "),
        ({"image_id": "x"}, "annotation 2 is malformed (a value of the wrong kind); "),
        ({"segmentation": {"size": [40, 60]}}, "annotation 2 is malformed (no 'counts'); "),
        ({"segmentation": {"size": [40, 60], "counts": [2399.5, 0.5]}}, "annotation 2 is malformed (a value of "),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "annotation 2 is malformed (a value of the wrong kind); "),
    ],
)
def test_a_bad_annotation_is_named(tmp_path, annotation, line):
    write_coco(tmp_path, [square(11, 3, 4), {**square(11, 3, 4), **annotation}])
    assert refused(tmp_path).startswith(f"ROOT/annotations/instances_train2017.json: {line}")


def test_a_mask_that_cannot_be_drawn_is_named_when_it_is_wanted(tmp_path):
    write_coco(tmp_path, [square(11, 3, 4, segmentation={"size": [40, 60], "counts": "zzzz"})])
    found = read_coco(tmp_path, "train", masks=True)
    with pytest.raises(DataError, match=r"instances_train2017.json: annotation 1: its mask cannot be drawn \("):
        found.truth(0)


def test_files_that_are_missing_or_damaged(tmp_path):
    assert refused(tmp_path) == (
        "ROOT/annotations/instances_train2017.json: cannot be read (No such file or directory); the folder of a COCO "
        "set holds annotations/ with instances_train2017.json and instances_val2017.json"
    )
    path = write_coco(tmp_path, [square(11, 3, 4), square(12, 3, 4), square(13, 3, 4)])
    whole = path.read_text()
    (tmp_path / "train2017" / "12.png").unlink()
    (tmp_path / "train2017" / "13.png").unlink()
    assert refused(tmp_path) == (
        "ROOT/train2017: 2 of the 3 images that ROOT/annotations/instances_train2017.json names are missing, "
        "the first is 12.png; copy them there"
    )
    path.write_text(whole[: len(whole) // 2])
    assert refused(tmp_path).startswith("ROOT/annotations/instances_train2017.json: no JSON, or cut off (")
    path.write_text(json.dumps({**json.loads(whole), "images": []}))
    assert "annotations/instances_train2017.json: has not COCO's" in refused(tmp_path)
    path.write_text("[]")
    assert "annotations/instances_train2017.json: has not COCO's" in refused(tmp_path)
    content = json.loads(whole)
    content["images"][1]["id"] = 11
    path.write_text(json.dumps(content))
    assert "has two images of one id" in refused(tmp_path)


def test_a_head_with_masks_needs_a_set_with_masks(tmp_path):
    annotation = square(11, 3, 4)
    del annotation["segmentation"]
    write_coco(tmp_path, [annotation])
    assert refused(tmp_path).endswith(
        "no annotation has a mask; retinanet, faster_rcnn and cascade_rcnn need none; mend the file or copy it again"
    )
    assert len(read_coco(tmp_path, "train", masks=False).truth(0).boxes) == 1


def test_splits_with_other_categories_are_refused(tmp_path):
    write_coco(tmp_path, [square(11, 3, 4)])
    for name, split_categories in (("same", {7: "cat", 3: "dog"}), ("other", {7: "cat", 3: "cow"}), ("id", {8: "cat"})):
        write_coco(tmp_path / name, [], split="val", categories=split_categories)
    train = read_coco(tmp_path, "train", masks=False)
    require_same_categories(train, read_coco(tmp_path / "same", "val", masks=True))
    with pytest.raises(DataError, match=r"other categories or ids than instances_train2017.json: cow, dog$"):
        require_same_categories(train, read_coco(tmp_path / "other", "val", masks=False))
    with pytest.raises(DataError, match=r"other categories or ids than .*: cat, cat, dog$"):
        require_same_categories(train, read_coco(tmp_path / "id", "val", masks=False))


def test_the_drawn_set_is_read_whole(tmp_path):
    assert main(["shapes", "--out", str(tmp_path / "set"), "--images", "4", "--val", "3", "--size", "96"]) == 0
    train, val = (read_coco(tmp_path / "set" / "coco", split, masks=True) for split in ("train", "val"))
    require_same_categories(train, val)
    assert train.dropped == {"crowds": 1, "images without an object": 1}
    assert [len(each.files) for each in (train, val)] == [3, 3]
    assert val.truth(0).crowd.sum() == 1 and len(val.truth(1).boxes) == 0
    coco = COCO(str(val.annotations))
    for index, image in enumerate(val.image_ids.tolist()):
        for mask, annotation in zip(val.truth(index).masks, coco.imgToAnns[image], strict=True):
            assert np.array_equal(mask, coco.annToMask(annotation))
