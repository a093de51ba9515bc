import os

import numpy as np
import pytest
from image_folders import message, put

from cotnet.errors import DataError
from data.sets.read import read_split, read_splits


def test_lists_classes_and_files_in_code_point_order(tmp_path):
    put(tmp_path, "train/b/2.png", "train/b/10.png", "train/a/x.JPEG", "train/10/z.webp", "train/9/z.tiff")
    put(tmp_path, "train/a/.hidden.png", "train/.cache/c.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    found = read_split(tmp_path, "train")
    assert found.classes == ("10", "9", "a", "b")
    assert found.files == ("10/z.webp", "9/z.tiff", "a/x.JPEG", "b/10.png", "b/2.png")
    assert found.labels.tolist() == [0, 1, 2, 3, 3]
    assert found.labels.dtype == np.int64
    for index in (2, 7, 12, -3):  # a plan's index of a repetition is larger by the number of files
        assert found.path(index) == tmp_path / "train" / "a" / "x.JPEG"


def test_missing_and_empty_folders(tmp_path):
    assert "nowhere: no such folder" in message(tmp_path / "nowhere")
    assert f"{tmp_path / 'train'}: no such folder" in message(tmp_path)
    (tmp_path / "train").mkdir()
    assert "train: no class folders in it; images belong in train/<class>/" in message(tmp_path)


def test_class_folders_without_images_are_named(tmp_path):
    put(tmp_path, "train/a/1.png")
    for name in ("b", "c", "d", "e"):
        (tmp_path / "train" / name).mkdir()
    assert "class folders b, c, d and 1 more without supported images; add some (.jpg," in message(tmp_path)


def test_unsupported_files_are_named_by_their_ending(tmp_path):
    put(tmp_path, "train/a/1.gif", "train/a/2.avif")
    assert "class folder a without supported images but files ending in .avif, .gif" in message(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission(tmp_path):
    put(tmp_path, "train/a/1.png")
    (tmp_path / "train" / "a").chmod(0)
    assert "cannot be listed" in message(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the first line is not split,path,class; add it"),
        ("path,class\na.png,a\n", "the first line is not split,path,class; add it"),
        ("split,path,class\ntrain,a.png\n", "line 2 has not the 3 values"),
        ("split,path,class\nval,a.png,a\n", "no row of split train"),
        ("split,path,class\ntrain,a.gif,a\n", "unsupported files a.gif"),
    ],
)
def test_malformed_lists(tmp_path, content, message):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        read_split(tmp_path / "list.csv", "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absolute_paths_and_order(tmp_path):
    (tmp_path / "list.csv").write_text(
        "split,path,class\ntrain,/images/2.png,b\ntrain,z.png,a\ntrain,/images/1.png,b\n"
    )
    found = read_split(tmp_path / "list.csv", "train")
    assert [str(found.path(i)) for i in range(3)] == [str(tmp_path / "z.png"), "/images/1.png", "/images/2.png"]
    assert found.labels.tolist() == [0, 1, 1]


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
