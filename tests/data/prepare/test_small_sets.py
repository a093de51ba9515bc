import gzip
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from programs import environment
from sklearn.datasets import load_digits

from data.prepare.__main__ import main
from data.sets.read import read_splits

pytestmark = pytest.mark.slow


def test_digits_are_all_there_once_and_split_by_class(tmp_path, capsys):
    out = tmp_path / "sets" / "digits"
    assert main(["digits", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 1438 training and 359 validation images of 10 digits\n"
    train, val = read_splits(out)
    assert train.classes == tuple("0123456789")
    source = load_digits()
    numbers = []
    for split in (train, val):
        for index, file in enumerate(split.files):
            number = int(file.split("/")[1].removesuffix(".png"))
            numbers.append(number)
            assert source.target[number] == split.labels[index]
    assert sorted(numbers) == list(range(1797))
    share = np.bincount(val.labels) / np.bincount(source.target)
    assert np.abs(share - 0.2).max() < 0.004
    with Image.open(train.path(0)) as image:
        assert (image.mode, image.size) == ("L", (32, 32))
        number = int(train.files[0].split("/")[1].removesuffix(".png"))
        levels = np.rint(source.images[number] * 255 / 16).astype(np.uint8)
        expected = Image.fromarray(levels).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert sorted(entry.name for entry in out.parent.iterdir()) == [".digits.lock", "digits"]


def test_a_second_call_does_nothing_and_a_killed_one_is_redone(tmp_path, capsys):
    out = tmp_path / "digits"
    (tmp_path / "digits.partial" / "train").mkdir(parents=True)  # what a kill leaves behind
    assert main(["digits", "--out", str(out)]) == 0
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert main(["digits", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: already there (1438 training and 359 validation images)\n"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written
    next(out.rglob("*.png")).unlink()
    assert main(["digits", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"{out}: holds 1796 images, not 1797; remove it or give another --out\n"


def test_missing_scikit_learn_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["digits", "--out", str(tmp_path / "digits")]) == 2
    assert capsys.readouterr().err == "digits come with scikit-learn, which is missing; pip install scikit-learn\n"
    assert not list(tmp_path.iterdir())


def test_unknown_set_is_refused():
    with pytest.raises(SystemExit) as caught:
        main(["letters"])
    assert caught.value.code == 2


def write_idx(path, array, *, pack):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.tobytes()
    if pack:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("pack", [False, True])
def test_fashion_mnist(tmp_path, capsys, pack):
    source, out = tmp_path / "idx", tmp_path / "fashion"
    source.mkdir()
    rng = np.random.default_rng(0)
    sizes = {"train": 20, "t10k": 10}
    pixels = {name: rng.integers(0, 256, (size, 28, 28), dtype=np.uint8) for name, size in sizes.items()}
    for name, images in pixels.items():
        write_idx(source / f"{name}-images-idx3-ubyte", images, pack=pack)
        write_idx(source / f"{name}-labels-idx1-ubyte", np.arange(len(images), dtype=np.uint8) % 10, pack=pack)
    arguments = ["fashion_mnist", "--source", str(source), "--out", str(out)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{out}: 20 training and 10 validation images of 10 classes\n"
    train, val = read_splits(out)
    assert train.classes[3] == "3_dress"
    assert train.files[7] == "3_dress/00013.png"
    assert np.array_equal(np.asarray(Image.open(train.path(7))), pixels["train"][13])
    assert np.array_equal(np.asarray(Image.open(val.path(9))), pixels["t10k"][9])
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out


def test_fashion_mnist_that_is_missing_or_damaged(tmp_path, capsys):
    arguments = ["fashion_mnist", "--source", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "train-images-idx3-ubyte: no such file, nor with .gz" in capsys.readouterr().err
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 28, 28), dtype=np.uint8), pack=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes()[:-1])
    assert main(arguments) == 2
    assert "train-images-idx3-ubyte: not an idx file of 3 dimensions" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["digits", "--out", str(tmp_path / "file" / "digits")]) == 2
    line = f"{tmp_path}/file/.digits.lock: Not a directory; mend it or make room, and try again\n"
    assert capsys.readouterr().err == line
    assert main(["digits", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/file: a file; give a folder as --out\n"


def test_a_set_is_made_in_the_working_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["digits", "--out", "."]) == 0
    assert capsys.readouterr().out == ".: 1438 training and 359 validation images of 10 digits\n"
    assert len(read_splits(tmp_path / "here")[0].files) == 1438


def fashion_source(folder):
    folder.mkdir()
    for name, size in (("train", 6000), ("t10k", 10)):
        images = np.random.default_rng(0).integers(0, 256, (size, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte", images, pack=False)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(size, dtype=np.uint8) % 10, pack=False)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_a_second_process_is_refused_and_destroys_nothing(tmp_path, capsys, name):
    """The first is stopped in its middle, the second one tries, the first goes on."""
    out, partial = tmp_path / "set", tmp_path / "set.partial"
    arguments = [name, "--out", str(out)]
    if name == "fashion_mnist":
        fashion_source(tmp_path / "idx")
        arguments += ["--source", str(tmp_path / "idx")]
    command = [sys.executable, "-m", "data.prepare", *arguments]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        while not list(partial.glob("*/*/*.png")):
            assert first.poll() is None
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        before = {path: path.stat().st_mtime_ns for path in partial.rglob("*")}
        assert main(arguments) == 2
        assert capsys.readouterr() == ("", f"{out} is in use by another process; wait for it or choose another --out\n")
        assert {path: path.stat().st_mtime_ns for path in partial.rglob("*")} == before
        assert not out.exists()
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 0
    assert len(list(out.rglob("*.png"))) == (1797 if name == "digits" else 6010)
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out
