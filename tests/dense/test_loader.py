"""Batches of the dense loader: the same with any workers and ranks; what damaged files say."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_loaders import JITTERED, WHOLE, evaluation_plan, loader, made
from dense_sets import square, write_ade, write_coco
from PIL import Image

from cotnet.dense.ade20k import read_ade20k
from cotnet.dense.coco import read_coco
from cotnet.errors import DataError

pytestmark = pytest.mark.slow


def flat(batch):
    """All tensors of a batch, with names."""
    named = [("image", image) for image in batch.images]
    named += [(name, part) for target in batch.targets for name, part in target.items()]
    return [*named, ("indices", batch.indices)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for (name, a), (other_name, b) in zip(flat(one), flat(other), strict=True):
            assert name == other_name and a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("kind", ["coco", "ade"])
def test_workers_ranks_and_continuing_change_nothing(drawn, kind):
    if kind == "coco":
        image_set, given = read_coco(drawn / "coco", "train", masks=True), JITTERED
    else:
        image_set, given = (
            read_ade20k(drawn / "ade", "train", num_classes=6),
            replace(JITTERED, crop=64, crop_max_share=0.75),
        )
    expected = [*loader(image_set, given).batches(1)]
    assert len(expected) == 3
    for threads in (1, 2):
        forked = loader(image_set, given, threads=threads)
        assert_same([*forked.batches(1)], expected)
        assert_same([*forked.batches(1, first=2)], expected[2:])  # the workers of the first epoch
        forked.close()
    assert multiprocessing.active_children() == []
    parts = [[*loader(image_set, given, rank=rank, world_size=2).batches(1)] for rank in range(2)]
    together = [
        type(one)(one[0] + two[0], one[1] + two[1], torch.cat([one[2], two[2]]))
        for one, two in zip(*parts, strict=True)
    ]
    assert_same(together, expected)
    with pytest.raises(AssertionError):
        assert_same([*loader(image_set, given).batches(2)], expected)


def test_three_ranks_put_together_are_one(drawn):
    image_set = read_coco(drawn / "coco", "train", masks=False)
    whole = [*loader(image_set, batch_size=6).batches(0)]
    parts = [[*loader(image_set, batch_size=6, rank=rank, world_size=3).batches(0)] for rank in range(3)]
    for number, expected in enumerate(whole):
        images = [image for part in parts for image in part[number].images]
        assert all(torch.equal(a, b) for a, b in zip(images, expected.images, strict=True))


def test_a_batch_of_detection(drawn):
    image_set = read_coco(drawn / "coco", "train", masks=True)
    for batch in loader(image_set).batches(0):
        assert batch.indices.dtype == torch.int64
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert image.dtype == torch.uint8 and image.shape[0] == 3
            assert {name: part.dtype for name, part in target.items()} == {
                "boxes": torch.float32,
                "labels": torch.int64,
                "masks": torch.uint8,
            }
            assert target["masks"].shape == (len(target["labels"]), *image.shape[1:])
            boxes, (height, width) = target["boxes"], image.shape[1:]
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all() and (boxes >= 0).all()
            assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert "masks" not in next(loader(read_coco(drawn / "coco", "train", masks=False)).batches(0)).targets[0]


def test_evaluation_keeps_empty_images(drawn):
    image_set = read_coco(drawn / "coco", "val", masks=True)
    batches = [*made(image_set, evaluation_plan(image_set)).batches(0)]
    assert torch.cat([batch.indices for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    for batch in batches:
        assert batch.targets == [{}] * len(batch.images)
        assert all(min(image.shape[1:]) == 40 for image in batch.images)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "I;16", "RGBA"])
def test_other_modes_are_converted_as_the_classification_loader_does(tmp_path, mode):
    write_coco(tmp_path, [square(11, 3, 4)], sizes=[(40, 60)])
    image_set = read_coco(tmp_path, "train", masks=False)
    path = image_set.root / "11.png"
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"))
        other = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    other.save(path, format="TIFF" if mode == "CMYK" else "PNG")
    found = next(loader(image_set, WHOLE, batch_size=1).batches(0)).images[0]
    expected = grey if mode == "I;16" else np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(found, np.broadcast_to(expected, found.shape))


def test_exif_orientation_is_ignored(tmp_path):
    write_coco(tmp_path, [square(11, 3, 4)], sizes=[(40, 60)])
    image_set = read_coco(tmp_path, "train", masks=False)
    path = image_set.root / "11.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    assert next(loader(image_set, WHOLE, batch_size=1).batches(0)).images[0].shape == (3, 40, 60)


@pytest.mark.parametrize("threads", [0, 1])
def test_a_damaged_file_is_one_line(tmp_path, threads):
    write_coco(tmp_path, [square(11, 3, 4)], sizes=[(40, 60)])
    image_set = read_coco(tmp_path, "train", masks=True)
    path = image_set.root / "11.png"

    def line():
        source = loader(image_set, WHOLE, batch_size=1, threads=threads)
        with pytest.raises(DataError) as raised:
            next(source.batches(0))
        source.close()
        return str(raised.value).replace(str(path), "PATH")

    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = line()
    assert found.startswith("PATH: damaged image (") and "\n" not in found
    if threads:  # the rest is the same
        return
    path.write_bytes(b"")
    assert line() == "PATH: damaged image (not an image); copy it again"
    Image.new("RGB", (50, 40)).save(path)
    assert line() == "PATH: the image is 40x50 (height x width), but 40x60 in its truth; copy both again"
    path.unlink()
    assert line() == "PATH: the image has vanished; restore it or read the set anew"


def test_a_map_of_another_size_is_one_line(tmp_path):
    images, _ = write_ade(tmp_path, [np.ones((40, 60), np.uint8)])
    image_set = read_ade20k(tmp_path, "train", num_classes=2)
    Image.new("RGB", (60, 41)).save(images / "ADE_0.jpg")
    with pytest.raises(DataError, match=r"ADE_0.jpg: the image is 41x60 \(height x width\), but 40x60 in its truth"):
        next(loader(image_set, WHOLE, batch_size=1).batches(0))
