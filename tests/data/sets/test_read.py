from image_folders import message, put

from data.sets.read import read_split, read_splits


def test_fingerprint_names_the_content_not_the_place(tmp_path):
    for place in ("one", "two"):
        put(tmp_path / place, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    one, two = (read_split(tmp_path / place, "train").fingerprint for place in ("one", "two"))
    assert one == two
    put(tmp_path / "two", "train/b/2.png")
    assert read_split(tmp_path / "two", "train").fingerprint != one
    assert read_splits(tmp_path / "one")[1].fingerprint == one


def test_different_classes_are_named(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")
    assert message(tmp_path).endswith("different classes; only in train: b; only in val: c")
    put(tmp_path, "train/c/1.png")
    assert message(tmp_path).endswith("different classes; only in train: b")
