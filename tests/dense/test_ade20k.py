import numpy as np
import pytest
from dense_sets import write_ade
from PIL import Image

from cotnet.dense.ade20k import read_ade20k
from cotnet.errors import DataError
from data.prepare.__main__ import main

MAP = np.array([[0, 1, 2], [150, 3, 0]], np.uint8)


def refused(root, call):
    with pytest.raises(DataError) as raised:
        call()
    line = str(raised.value)
    assert "\n" not in line
    return line.replace(str(root), "ROOT")


def test_labels_begin_at_zero_and_other_is_ignored(tmp_path):
    images, maps = write_ade(tmp_path, [MAP, MAP.T])
    found = read_ade20k(tmp_path, "train", num_classes=150)
    assert (found.root, found.maps) == (images, maps)
    assert found.files == ("ADE_0.jpg", "ADE_1.jpg")
    assert found.classes(0).tolist() == [[255, 0, 1], [149, 2, 255]]
    assert found.classes(1).dtype == np.uint8 and np.array_equal(found.classes(1), found.classes(0).T)
    assert found.categories[0] == "class 1" and len(found.categories) == 150


def test_names_come_from_the_table(tmp_path):
    write_ade(tmp_path, [MAP], part="validation")
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11664\t1172\t1\twall\n2\t0.1\t7\t6\t1\tbuilding, edifice \n"
    (tmp_path / "ADEChallengeData2016" / "objectInfo150.txt").write_text(table)
    found = read_ade20k(tmp_path, "val", num_classes=3)
    assert found.categories == ("wall", "building", "class 3")


def test_the_fingerprint_is_of_names(tmp_path):
    for name, count in (("a", 2), ("b", 2), ("c", 3)):
        write_ade(tmp_path / name, [MAP] * count)
    one, same, other = (read_ade20k(tmp_path / name, "train", num_classes=150).fingerprint for name in "abc")
    assert one == same != other
    assert read_ade20k(tmp_path / "a", "train", num_classes=149).fingerprint != one


def test_wrong_maps_are_named(tmp_path):
    _, maps = write_ade(tmp_path, [MAP, MAP])
    found = read_ade20k(tmp_path, "train", num_classes=149)
    place = "ROOT/ADEChallengeData2016/annotations/training"
    expected = f"{place}/ADE_0.png: label 150, not 0 to 149; mend it or set data.num_classes"
    assert refused(tmp_path, lambda: found.classes(0)) == expected
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(maps / "ADE_0.png")
    assert refused(tmp_path, lambda: found.classes(0)).startswith(f"{place}/ADE_0.png: several channels, not 0 to 149")
    (maps / "ADE_0.png").write_bytes((maps / "ADE_1.png").read_bytes()[:50])
    assert refused(tmp_path, lambda: found.classes(0)).startswith(f"{place}/ADE_0.png: damaged image (")
    (maps / "ADE_1.png").unlink()
    line = refused(tmp_path, lambda: read_ade20k(tmp_path, "train", num_classes=149))
    assert line == f"{place}: no label map (.png) for ADE_1.jpg; copy the set again"


def test_a_missing_folder_is_named(tmp_path):
    line = refused(tmp_path, lambda: read_ade20k(tmp_path, "val", num_classes=5))
    place = "ROOT/ADEChallengeData2016/images/validation"
    assert line == f"{place}: cannot be listed (No such file or directory); data.root holds ADEChallengeData2016"
    line = refused(tmp_path, lambda: read_ade20k(tmp_path, "val", num_classes=255))
    assert line == "data.num_classes=255: label maps of 8 bits name at most 254"


def test_the_drawn_set_is_read_whole(tmp_path):
    assert main(["shapes", "--out", str(tmp_path / "set"), "--images", "3", "--val", "2", "--size", "64"]) == 0
    train, val = (read_ade20k(tmp_path / "set" / "ade", split, num_classes=6) for split in ("train", "val"))
    assert train.categories == val.categories == ("rectangle", "disc", "triangle", "cross", "sky", "ground")
    assert [len(each.files) for each in (train, val)] == [3, 2]
    assert set(np.unique(train.classes(1))) == {4, 5, 255}  # the second has no object
