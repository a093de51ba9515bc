"""ImageNet from its three archives, on miniatures of the same structure."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from photographs import make_imagenet
from PIL import Image
from programs import environment
from scipy.io import savemat

from cotnet.errors import DataError
from data.prepare.__main__ import main
from data.prepare.archives import DEVKIT, TRAIN, VAL, Encoding, imagenet
from data.sets.read import class_words, read_splits

pytestmark = pytest.mark.slow


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
    expected = {"classes": 3, "train": 12, "val": 9}
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
    for wrong, message in (
        (
            None,
            r"the archives hold \{'classes': 3, 'val': 9\}, not \{'classes': 1000, 'train': 1281167, 'val': 50000\}",
        ),
        ({**expected, "train": 13}, r"holds \{'classes': 3, 'train': 12, 'val': 9\}, not "),
    ):
        with pytest.raises(DataError, match=message):
            imagenet(tmp_path / "archives", out, workers=1, encoding=None, expected=wrong)
    with pytest.raises(
        DataError, match="was begun with images as they are, not --resize 60 --quality 90; use the same"
    ):
        imagenet(tmp_path / "archives", out, workers=1, encoding=Encoding(60, 90), expected=expected)


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_after_a_failure_nobody_writes_any_more(tmp_path):
    """One class of eight is damaged; the same command goes on at once when its archive is mended."""
    archives, out = tmp_path / "archives", tmp_path / "out"
    make_archives(archives, make_imagenet(tmp_path / "set", classes=8, train=12, val=1, side=300))
    whole = (archives / TRAIN).read_bytes()
    settings = {"encoding": Encoding(60, 90), "expected": {"classes": 8, "train": 96, "val": 8}}
    (archives / TRAIN).write_bytes(whole[:512] + b"x" * 512 + whole[1024:])  # within the first class
    for workers in (2, 4):
        with pytest.raises(DataError, match="damaged, or another archive"):
            imagenet(archives, out, workers=workers, **settings)
        left = contents(out)
        time.sleep(1)
        assert contents(out) == left
    (archives / TRAIN).write_bytes(whole)
    line = imagenet(archives, out, workers=4, **settings)
    assert line == f"{out}: 96 training and 8 validation images of 8 classes"


PROGRAM = """
import sys
from pathlib import Path
from data.prepare.archives import Encoding, imagenet
from data.prepare.commands import exit_code

def work():
    counts = {"classes": 8, "train": 96, "val": 8}
    print(imagenet(Path("archives"), Path("out"), workers=1, encoding=Encoding(60, 90), expected=counts))
    return 0

sys.exit(exit_code(work, Path("out")))
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
        tmp_path / "archives",
        out,
        workers=1,
        encoding=Encoding(side=50, quality=90),
        expected={"classes": 2, "train": 4, "val": 2},
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
    expected = {"classes": 2, "train": 4, "val": 2}

    def refused(name, damage):
        content = (archives / name).read_bytes()
        (archives / name).write_bytes(damage(content))
        with pytest.raises(DataError) as caught:
            imagenet(archives, tmp_path / "out", workers=1, encoding=None, expected=expected)
        (archives / name).write_bytes(content)
        assert str(caught.value).startswith(f"{archives / name}: damaged, or another archive (")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    refused(DEVKIT, lambda _: b"not packed")
    refused(DEVKIT, lambda content: content[:-40])
    refused(TRAIN, lambda content: content[: len(content) // 2])
    refused(TRAIN, lambda content: content[:512] + b"x" * 512 + content[1024:])  # within a class
    assert "ILSVRC2012_val_00000001.JPEG is no class" in refused(TRAIN, lambda _: (archives / VAL).read_bytes())
    refused(VAL, lambda _: (archives / TRAIN).read_bytes())
    imagenet(archives, tmp_path / "out", workers=1, encoding=None, expected=expected)  # what they left is no hindrance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "0"), "'0' is not a whole number above 0"),
        (("--workers", "1000000000000"), "1000000000000 is above 1024"),
        (("--resize", "0"), "'0' is not a whole number above 0"),
        (("--resize", "--quality", "99"), "99 is above 95"),
    ],
)
def test_impossible_numbers(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["imagenet", "--archives", "a", "--out", "o", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def living(group):
    """The numbers of the processes of a group, the dead that nobody has asked for left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def begin(tmp_path):
    """The program in a group of its own, with a class complete, and more to do."""
    make_archives(tmp_path / "archives", make_imagenet(tmp_path / "set", classes=8, train=12, val=1, side=200))
    command = {"args": [sys.executable, "-c", PROGRAM], "cwd": tmp_path, "env": environment()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(**command, **pipes, start_new_session=True)
    while not list((tmp_path / "out" / "train").glob("n*")):
        assert process.poll() is None
        time.sleep(0.001)
    return process


@pytest.mark.parametrize(
    ("number", "to_group", "code", "line"),
    [
        (signal.SIGINT, True, 75, "interrupted; the same command goes on\n"),  # as a terminal sends Ctrl-C
        (signal.SIGKILL, False, -signal.SIGKILL, ""),
    ],
)
def test_a_cut_extraction_leaves_no_process(tmp_path, number, to_group, code, line):
    process = begin(tmp_path)
    try:
        assert len(living(process.pid)) >= 2
        (os.killpg if to_group else os.kill)(process.pid, number)
        text, error = process.communicate(timeout=60)
        assert (process.returncode, text) == (code, "")
        assert error == line or number == signal.SIGKILL  # then multiprocessing's tracker warns
        deadline = time.monotonic() + 10
        while living(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert living(process.pid) == []
        if number == signal.SIGINT:
            assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".partial")]
    finally:
        for left in living(process.pid):
            os.kill(left, signal.SIGKILL)


def test_a_second_extraction_into_a_folder_is_refused(tmp_path):
    process = begin(tmp_path)
    try:
        os.killpg(process.pid, signal.SIGSTOP)
        out, before = tmp_path / "out", contents(tmp_path / "out")
        expected = {"classes": 8, "train": 96, "val": 8}
        with pytest.raises(DataError) as caught:
            imagenet(tmp_path / "archives", out, workers=1, encoding=Encoding(60, 90), expected=expected)
        assert str(caught.value) == f"{out} is in use by another process; wait for it or choose another --out"
        assert contents(out) == before
        os.killpg(process.pid, signal.SIGCONT)
        text, _ = process.communicate(timeout=60)
        assert (process.returncode, text) == (0, "out: 96 training and 8 validation images of 8 classes\n")
    finally:
        for number in living(process.pid):
            os.kill(number, signal.SIGKILL)
