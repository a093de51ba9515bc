"""Damaged images, and what is left of a loader when it is closed."""

import time
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
from loaders import CPU, EVALUATION, LOADERS, TRAIN
from photographs import make_imagenet, photographs

from cotnet.errors import DataError
from data.loading.dali import DaliLoader
from data.sets.image_set import image_size
from data.sets.read import read_split

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated", "damaged image (image file is truncated"),
        ("garbage", "damaged image (not an image)"),
        ("empty", "damaged image (not an image)"),
        ("vanished", "the image has vanished"),
        ("later", "damaged image ("),
    ],
)
def test_a_damaged_image_is_named(loader, damage, reason, tmp_path, open_loader):
    root = make_imagenet(tmp_path, classes=2, train=6, val=1)
    image_set = read_split(root, "train")
    victim = image_set.path(7)
    content = victim.read_bytes()
    if damage == "vanished":
        victim.unlink()
    else:
        cut = {"truncated": len(content) // 2, "garbage": 0, "empty": 0, "later": 700}[damage]
        tail = {"garbage": b"not an image " * 50, "later": bytes(len(content) - 700)}.get(damage, b"")
        victim.write_bytes(content[:cut] + tail)
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        threads = 2 if damage == "truncated" else None  # once from a worker
        for _ in open_loader(loader, image_set, replace(EVALUATION, batch_size=4), threads=threads).batches(0):
            pass
    assert str(caught.value).startswith(f"{victim}: {reason}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(victim)) + 160
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("plan", [TRAIN, EVALUATION])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_jpeg_that_was_cut_off_ends_the_epoch(loader, plan, progressive, tmp_path, open_loader):
    """At 30, 60 and 95 % of its bytes: no batch with it is given out, so it is never counted by half."""
    image_set = read_split(make_imagenet(tmp_path, classes=2, train=6, val=1), "train")
    victim = image_set.path(7)
    photographs()[1].save(victim, progressive=progressive)
    content = victim.read_bytes()
    for share in (30, 60, 95):
        victim.write_bytes(content[: len(content) * share // 100])
        counted: list[int] = []
        with pytest.raises(DataError) as caught:
            for batch in open_loader(loader, image_set, replace(plan, batch_size=4)).batches(0):
                counted += batch.indices.tolist()
        assert str(caught.value).startswith(f"{victim}: damaged image (")
        assert 7 not in counted


@pytest.mark.parametrize("plan", [TRAIN, EVALUATION])
def test_a_jpeg_that_was_cut_off_does_not_reach_the_decoder(plan, tmp_path, open_loader):
    """The error comes before decoding, whatever the crop, in an image's first batch; with known sizes too."""
    image_set = read_split(make_imagenet(tmp_path, classes=2, train=6, val=1), "train")
    plan = replace(plan, batch_size=12)
    sizes = np.array([image_size(image_set.path(index)) for index in range(12)])
    victim = image_set.path(7)
    content = victim.read_bytes()
    for share, known in product((30, 60, 95), (None, sizes)):
        loader = open_loader(DaliLoader, replace(image_set, sizes=known), plan)
        assert sorted(loader._prepare(0, 0).indices) == list(range(12))
        victim.write_bytes(content[: len(content) * share // 100])
        assert len(loader._prepare(1, 0).indices) == 12  # seen whole by this process
        loader._seen[:] = False
        with pytest.raises(DataError) as caught:
            loader._prepare(0, 0)
        assert str(caught.value).startswith(f"{victim}: damaged image (image file is truncated")
        victim.write_bytes(content)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_damaged_image_is_named_in_any_repetition(loader, tmp_path, open_loader):
    """Indices go beyond the number of files; the first batch of this rank holds only second repetitions."""
    image_set = read_split(make_imagenet(tmp_path, classes=2, train=6, val=1), "train")
    plan = replace(TRAIN, samples=12, batch_size=12, rank=1, world_size=2, repeats=2)
    indices = plan.indices(0, 0)
    assert (indices >= 12).all()
    victim = image_set.path(int(indices[3]))
    assert victim == image_set.root / image_set.files[indices[3] - 12]
    victim.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        list(open_loader(loader, image_set, plan).batches(0))
    assert str(caught.value).startswith(f"{victim}: damaged image (not an image)")


def test_an_image_that_only_dali_refuses_is_named(tmp_path, open_loader):
    image_set = read_split(make_imagenet(tmp_path, classes=2, train=6, val=1), "train")
    photographs()[0].resize((60, 60)).save(image_set.path(3), format="GIF")
    with pytest.raises(DataError) as caught:
        list(open_loader(DaliLoader, image_set, replace(EVALUATION, batch_size=4)).batches(0))
    assert str(caught.value).startswith(f"{image_set.path(3)}: damaged image (DALI cannot decode it); replace")


def own_tasks():
    """Threads of this process and its living children."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    children = [
        child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return threads, len(children)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("half_way", [pytest.param(False, marks=pytest.mark.long), True])
def test_closing_is_quick_and_leaves_nothing(loader, half_way, train_set):
    plan = replace(TRAIN, samples=len(train_set.files))

    def use(seconds_to_close):
        opened = loader(train_set, plan, output_device=CPU, interpolation="bilinear", threads=2, prefetch=2)
        batches = opened.batches(0)
        kept = [batch.images for batch in (islice(batches, 2) if half_way else batches)]
        pixels = [images.clone() for images in kept]
        started = time.monotonic()
        opened.close()
        seconds_to_close.append(time.monotonic() - started)
        assert all(torch.equal(image, pixel) for image, pixel in zip(kept, pixels, strict=True)), "memory was reused"

    use([])  # the first one starts threads that the libraries keep
    before = own_tasks()
    seconds: list[float] = []
    for _ in range(2):
        use(seconds)
    deadline = time.monotonic() + 2  # a thread that was told to end may need a moment
    while own_tasks() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert own_tasks() <= before
    assert max(seconds) < 1
