import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.samples import DataError, image_size, read_split, read_splits

ROOT = Path(__file__).resolve().parents[2]


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, format="PNG")


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


def test_fingerprint_names_the_content_not_the_place(tmp_path):
    for place in ("one", "two"):
        put(tmp_path / place, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    one, two = (read_split(tmp_path / place, "train").fingerprint for place in ("one", "two"))
    assert one == two
    put(tmp_path / "two", "train/b/2.png")
    assert read_split(tmp_path / "two", "train").fingerprint != one
    assert read_splits(tmp_path / "one")[1].fingerprint == one


def message(root, call=read_splits):
    with pytest.raises(DataError) as caught:
        call(root)
    text = str(caught.value)
    assert "\n" not in text
    return text


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


def test_different_classes_are_named(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")
    assert message(tmp_path).endswith("different classes; only in train: b; only in val: c")
    put(tmp_path, "train/c/1.png")
    assert message(tmp_path).endswith("different classes; only in train: b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission(tmp_path):
    put(tmp_path, "train/a/1.png")
    (tmp_path / "train" / "a").chmod(0)
    assert "cannot be listed" in message(tmp_path)


def test_image_size_is_read_from_the_header(tmp_path):
    Image.new("L", (31, 17)).save(tmp_path / "grey.png")
    assert image_size(tmp_path / "grey.png") == (17, 31)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees when shown
    Image.new("RGB", (31, 17)).save(tmp_path / "rotated.jpg", exif=exif)
    assert image_size(tmp_path / "rotated.jpg") == (17, 31)


def test_corrupt_exif_data_is_no_matter(tmp_path):
    path = tmp_path / "1.jpg"
    Image.new("RGB", (31, 17)).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x1a\x01\x05\0")
    program = f"from data.samples import image_size; print(image_size({str(path)!r}))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("(17, 31)\n", "")


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0"])
def test_image_size_names_a_damaged_file(tmp_path, content):
    (tmp_path / "bad.jpg").write_bytes(content)
    assert "bad.jpg: damaged image" in message(tmp_path / "bad.jpg", image_size)
    assert "gone.jpg: the image has vanished" in message(tmp_path / "gone.jpg", image_size)
