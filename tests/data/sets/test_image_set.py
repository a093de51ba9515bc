import subprocess
import sys

import pytest
from image_folders import message
from PIL import Image
from programs import ROOT

from data.sets.image_set import image_size


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
    program = f"from data.sets.image_set import image_size; print(image_size({str(path)!r}))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("(17, 31)\n", "")


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0"])
def test_image_size_names_a_damaged_file(tmp_path, content):
    (tmp_path / "bad.jpg").write_bytes(content)
    assert "bad.jpg: damaged image" in message(tmp_path / "bad.jpg", image_size)
    assert "gone.jpg: the image has vanished" in message(tmp_path / "gone.jpg", image_size)
