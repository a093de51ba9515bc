import subprocess
import sys

import numpy as np
import pytest
from image_folders import message
from photographs import photographs
from PIL import Image
from programs import ROOT

from cotnet.errors import DataError
from data.sets.image_set import as_rgb, image_size, require_end


def test_image_size_is_read_from_the_header(tmp_path):
    Image.new("L", (31, 17)).save(tmp_path / "grey.png")
    assert image_size(tmp_path / "grey.png") == (17, 31)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees when shown
    Image.new("RGB", (31, 17)).save(tmp_path / "rotated.jpg", exif=exif)
    assert image_size(tmp_path / "rotated.jpg") == (17, 31)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("RGB", {}),
        ("L", {"restart_marker_blocks": 1}),
        ("CMYK", {"comment": b"a" * 9000}),
        ("RGB", {"progressive": True, "subsampling": 2, "icc_profile": bytes(200_000), "exif": bytes(60_000)}),
    ],
)
def test_the_size_of_a_jpeg_is_pils(tmp_path, kind, how, monkeypatch):
    path = tmp_path / "1.jpg"
    Image.new(kind, (31, 17)).save(path, **how)
    content = path.read_bytes()
    monkeypatch.setattr(Image, "open", None)  # read without PIL
    assert image_size(path) == (17, 31)
    monkeypatch.undo()
    start = 2 + int.from_bytes(content[4:6])  # with fill bytes before a marker, which the standard allows
    path.write_bytes(content[: 2 + start] + b"\xff\xff" + content[2 + start :])
    assert image_size(path) == (17, 31)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [1, 30, 60, 95, 99.9])
def test_a_jpeg_that_was_cut_off_is_named(tmp_path, share, progressive):
    path = tmp_path / "1.jpg"
    photographs()[0].save(path, progressive=progressive)
    content = path.read_bytes()
    require_end(path)
    path.write_bytes(content + b"more data of a camera")
    require_end(path)
    path.write_bytes(content[: int(len(content) * share / 100)])
    with pytest.raises(DataError, match=r"1\.jpg: damaged image \(.*\); replace or remove it"):
        require_end(path)
    path.unlink()
    with pytest.raises(DataError, match="has vanished"):
        require_end(path)


def test_grey_of_16_bits_is_scaled():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(255 * levels.astype(float) / 65535 + 0.5)
    assert np.array_equal(as_rgb(Image.fromarray(levels)), np.stack([expected] * 3, axis=2))


def test_corrupt_exif_data_is_no_matter(tmp_path):
    path = tmp_path / "1.jpg"
    Image.new("RGB", (31, 17)).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x1a\x01\x05\0")
    program = f"from data.sets.image_set import image_size; print(image_size({str(path)!r}))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("(17, 31)\n", "")


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0"])
def test_image_size_names_a_damaged_file(tmp_path, content):
    (tmp_path / "bad.jpg").write_bytes(content)
    assert "bad.jpg: damaged image" in message(tmp_path / "bad.jpg", image_size)
    assert "gone.jpg: the image has vanished" in message(tmp_path / "gone.jpg", image_size)
