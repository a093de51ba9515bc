import os

import numpy as np
import pytest
from image_folders import message, put

from data.sets.read import read_split


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
