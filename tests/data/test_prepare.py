import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from photographs import make_imagenet
from PIL import Image
from programs import environment
from scipy.io import savemat
from sklearn.datasets import load_digits

from data.archives import DEVKIT, TRAIN, VAL, Encoding, imagenet
from data.prepare import main
from data.samples import DataError, class_words, read_splits


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
    assert [entry.name for entry in out.parent.iterdir()] == ["digits"]


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


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def make_archives(folder, root):
    """The three archives of a small set, built as the official ones are."""
    train, val = read_splits(root)
    folder.mkdir()
    with tarfile.open(folder / TRAIN, "w") as outer:
        for label, synset in enumerate(train.classes):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for index in np.flatnonzero(train.labels == label):
                    add(archive, train.files[index].split("/")[1], train.path(index).read_bytes())
            add(outer, f"{synset}.tar", inner.getvalue())
    order = np.random.default_rng(0).permutation(len(val.files))
    with tarfile.open(folder / VAL, "w") as archive:
        for number, index in enumerate(order, start=1):
            add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", val.path(index).read_bytes())
    numbers = {synset: 1 + (label + 1) % len(val.classes) for label, synset in enumerate(val.classes)}  # not sorted
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(numbers[synset], synset, f"fish {synset}, swimmer", 0) for synset in val.classes]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array([*rows, (1001, "n00000001", "animal", 4)], dtype=kinds)})
    truth = "".join(f"{numbers[val.classes[val.labels[index]]]}\n" for index in order)
    with tarfile.open(folder / DEVKIT, "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    return train, val, [val.path(index).read_bytes() for index in order]


def test_imagenet_from_its_archives(tmp_path):
    root = make_imagenet(tmp_path / "set", classes=3, train=4, val=3)
    train, val, contents = make_archives(tmp_path / "archives", root)
    expected = {"train": 12, "val": 9}
    out = tmp_path / "imagenet"
    line = imagenet(tmp_path / "archives", out, workers=2, encoding=None, expected=expected)
    assert line == f"{out}: 12 training and 9 validation images of 3 classes"
    found_train, found_val = read_splits(out)
    assert found_train.fingerprint == train.fingerprint
    assert all(found_train.path(i).read_bytes() == train.path(i).read_bytes() for i in range(12))
    assert found_val.labels.tolist() == val.labels.tolist()
    for index, file in enumerate(found_val.files):
        number = int(file[-13:-5])
        assert found_val.path(index).read_bytes() == contents[number - 1]
        assert found_val.path(index).read_bytes() in [
            val.path(i).read_bytes() for i in np.flatnonzero(val.labels == found_val.labels[index])
        ]
    assert class_words(out, found_train.classes)[0] == "fish n01440764, swimmer"
    assert class_words(root, ("a", "b")) == ("a", "b")

    # A kill leaves a hidden part of one class; what was complete is not written again.
    shutil.rmtree(out / "train" / "n01443537")
    (out / "train" / ".n01443537.partial").mkdir()
    times = {path: path.stat().st_mtime_ns for path in (out / "val").rglob("*.JPEG")}
    imagenet(tmp_path / "archives", out, workers=1, encoding=None, expected=expected)
    assert read_splits(out)[0].fingerprint == train.fingerprint
    assert {path: path.stat().st_mtime_ns for path in (out / "val").rglob("*.JPEG")} == times
    with pytest.raises(DataError, match=r"holds .* not \{'train': 1281167, 'val': 50000\} images"):
        imagenet(tmp_path / "archives", out, workers=1, encoding=None)


PROGRAM = """
import sys
from pathlib import Path
from data.archives import Encoding, imagenet
print(imagenet(Path("archives"), Path("out"), workers=1, encoding=Encoding(60, 90), expected={"train": 96, "val": 8}))
"""


@pytest.mark.slow
def test_imagenet_killed_in_the_middle_and_continued(tmp_path):
    """SIGKILL for the program and its workers once a class is complete: what is there is whole, the rest follows."""
    make_archives(tmp_path / "archives", make_imagenet(tmp_path / "set", classes=8, train=12, val=1, side=200))
    train = tmp_path / "out" / "train"
    command = {"args": [sys.executable, "-c", PROGRAM], "cwd": tmp_path, "env": environment()}
    process = subprocess.Popen(**command, start_new_session=True)
    while not (train.is_dir() and any(not folder.name.startswith(".") for folder in train.iterdir())):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    complete = [folder for folder in train.iterdir() if not folder.name.startswith(".")]
    assert 1 <= len(complete) < 8
    assert all(len(list(folder.iterdir())) == 12 for folder in complete)
    times = {path: path.stat().st_mtime_ns for folder in complete for path in folder.iterdir()}

    done = subprocess.run(**command, capture_output=True, text=True, check=True)
    assert done.stdout == "out: 96 training and 8 validation images of 8 classes\n"
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".partial")]
    one, other = read_splits(tmp_path / "out"), read_splits(tmp_path / "set")
    assert one[0].fingerprint == other[0].fingerprint
    for split in one:
        for index in range(len(split.files)):
            with Image.open(split.path(index)) as image:
                image.load()
                assert min(image.size) == 60


def test_imagenet_stored_smaller(tmp_path):
    make_archives(tmp_path / "archives", make_imagenet(tmp_path / "set", classes=2, train=2, val=1))
    out = tmp_path / "imagenet"
    imagenet(
        tmp_path / "archives", out, workers=1, encoding=Encoding(side=50, quality=90), expected={"train": 4, "val": 2}
    )
    for path in out.rglob("*.JPEG"):
        with Image.open(path) as image:
            assert min(image.size) == 50
            assert image.format == "JPEG"


def test_imagenet_archives_that_are_missing_or_damaged(tmp_path, capsys):
    archives = tmp_path / "archives"
    arguments = ["imagenet", "--archives", str(archives), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 2
    assert "ILSVRC2012_img_train.tar: no such file" in capsys.readouterr().err
    make_archives(archives, make_imagenet(tmp_path / "set", classes=2, train=2, val=1))
    (archives / DEVKIT).write_bytes(b"not packed")
    assert main(arguments) == 2
    assert "damaged or foreign archives" in capsys.readouterr().err
