"""Both loaders against each other, against torchvision's own transforms, and against their contract."""

import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import make_imagenet, photographs
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from data.dali import DaliLoader, _arguments, _crops
from data.order import PADDING, EvaluationPlan, TrainPlan
from data.samples import DataError, image_size, read_split
from data.torchvision import TorchvisionLoader

LOADERS = [DaliLoader, TorchvisionLoader]
CPU = torch.device("cpu")
TRAIN = TrainPlan(
    samples=32,
    batch_size=6,
    rank=0,
    world_size=1,
    seed=0,
    image_size=48,
    crop_scale=(0.08, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
    flip=0.5,
    eval_crop_ratio=0.875,
)
EVALUATION = EvaluationPlan(samples=32, batch_size=10, rank=0, world_size=1, image_size=48, crop_ratio=0.875)


@pytest.fixture(scope="module")
def train_set(tmp_path_factory):
    return read_split(make_imagenet(tmp_path_factory.mktemp("imagenet"), train=8, val=1), "train")


@pytest.fixture
def open_loader():
    """A loader that is closed again: open_loader(cls, image_set, plan, ...)."""
    opened = []

    def make(loader, image_set, plan, *, interpolation="bilinear", threads=1, prefetch=2):
        plan = replace(plan, samples=len(image_set.files))
        opened.append(
            loader(image_set, plan, device=CPU, interpolation=interpolation, threads=threads, prefetch=prefetch)
        )
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for mine, expected in zip(batch, other, strict=True):
            assert torch.equal(mine, expected)


def differences(batches, others):
    """Absolute differences (images, channels, height, width) of all the pixels of two runs over the same samples."""
    parts = []
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.indices, other.indices)
        assert torch.equal(batch.targets, other.targets)
        parts.append((batch.images.int() - other.images.int()).abs())
    return torch.cat(parts)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("plan", [TRAIN, EVALUATION, replace(TRAIN, repeats=3)])
def test_batches_are_what_the_plan_says(loader, plan, train_set, open_loader):
    plan = replace(plan, samples=len(train_set.files))
    found = list(open_loader(loader, train_set, plan).batches(3))
    assert len(found) == plan.batches(3)
    for number, batch in enumerate(found):
        indices = plan.indices(3, number)
        assert batch.images.shape == (plan.rank_batch, 3, 48, 48)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        assert batch.indices.tolist() == indices.tolist()
        assert batch.targets.dtype == torch.int64
        assert batch.targets.tolist() == [0 if i == PADDING else train_set.labels[i % 32] for i in indices]


def evaluated(image_set, transform):
    return torch.stack([transform(Image.open(image_set.path(i)).convert("RGB")) for i in range(len(image_set.files))])


def assert_as_pil(difference, interpolation):
    """The bounds that data/resize.py states; PIL rounds the filter's weights to 22 bits, torch to 15."""
    assert difference.max() <= (1 if interpolation == "bilinear" else 16)
    assert (difference > 1).float().mean() < 2e-4
    assert difference.float().mean() < 0.03


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "crop_ratio"), [(48, 0.875), (33, 0.7), (64, 0.94), (33, 1.0)])
def test_evaluation_is_torchvisions_transforms(interpolation, size, crop_ratio, train_set, open_loader):
    """The torchvision loader bit for bit on PIL images, DALI's bit for bit on tensors."""
    geometry = [v2.Resize(int(size / crop_ratio), InterpolationMode(interpolation)), v2.CenterCrop(size)]
    by_pil = evaluated(train_set, v2.Compose([*geometry, v2.PILToTensor()]))
    by_torch = evaluated(train_set, v2.Compose([v2.PILToTensor(), *geometry]))
    plan = replace(EVALUATION, image_size=size, crop_ratio=crop_ratio)
    for loader, expected in ((TorchvisionLoader, by_pil), (DaliLoader, by_torch)):
        batches = open_loader(loader, train_set, plan, interpolation=interpolation, threads=1).batches(0)
        assert torch.equal(torch.cat([batch.images for batch in batches])[:32], expected)
    assert_as_pil((by_torch.int() - by_pil.int()).abs(), interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_crops_of_both_loaders(interpolation, train_set, open_loader):
    loaders = [open_loader(loader, train_set, TRAIN, interpolation=interpolation) for loader in LOADERS]
    difference = torch.cat([differences(*(loader.batches(epoch) for loader in loaders)) for epoch in range(3)])
    assert_as_pil(difference, interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("plan", [TRAIN, EVALUATION, replace(EVALUATION, image_size=33, crop_ratio=1.0)])
def test_the_gpus_graph_within_its_bounds(interpolation, plan, train_set, open_loader):
    """At most 1 (bilinear) or 8 (bicubic) grey levels inside, 16 in the outermost row and column (bicubic: two) where
    the crop reaches the border of what is resized: beyond it DALI repeats the outermost pixel, PIL leaves it out."""
    work = []
    for batch in range(plan.batches(0)):
        indices = plan.indices(0, batch)
        paths = [train_set.path(index % 32) for index in indices]
        geometry = plan.geometry(0, indices, np.array([image_size(path) for path in paths]))
        work.append(_arguments([str(path) for path in paths], geometry, plan.image_size))
    arguments = iter(work)
    settings = {"batch_size": plan.rank_batch, "num_threads": 1, "device_id": None}
    pipeline = _crops(lambda: next(arguments), "cpu", interpolation, plan.image_size, **settings)
    found = torch.cat([torch.from_dlpack(pipeline.run()[0].as_tensor()) for _ in work])
    batches = open_loader(TorchvisionLoader, train_set, plan, interpolation=interpolation).batches(0)
    difference = (found.int() - torch.cat([batch.images for batch in batches]).int()).abs()
    edge, bound = (1, 1) if interpolation == "bilinear" else (2, 8)
    assert difference[..., edge:-edge, edge:-edge].max() <= bound
    assert difference.max() <= (bound if plan is EVALUATION else 16)
    assert difference.float().mean() < 0.25


def folder_of(tmp_path, **images):
    """An image set with one class from name=image or name=(image, arguments of save)."""
    folder = tmp_path / "train" / "photographs"
    folder.mkdir(parents=True)
    for name, (image, suffix, options) in images.items():
        image.save(folder / f"{name}{suffix}", **options)
    return read_split(tmp_path, "train")


def test_formats_and_modes_decode_alike(tmp_path, open_loader):
    image = photographs()[0].resize((150, 110))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    found = folder_of(
        tmp_path,
        alpha=(photographs()[3].resize((90, 80)).convert("RGBA"), ".png", {}),
        bitmap=(image, ".bmp", {}),
        cmyk=(image.convert("CMYK"), ".JPEG", {"quality": 92}),
        exif=(image, ".jpg", {"exif": rotated, "quality": 90}),
        grey=(image.convert("L"), ".jpg", {"quality": 90}),
        greypng=(image.convert("L"), ".png", {}),
        palette=(image.quantize(64), ".png", {}),
        portable=(image, ".ppm", {}),
        progressive=(image, ".jpg", {"progressive": True, "quality": 85, "subsampling": 2}),
        small=(image.resize((20, 31)), ".jpg", {"subsampling": 0}),
        tiff=(image, ".tif", {}),
        webp=(image, ".webp", {"lossless": True}),
    )
    loaders = [open_loader(loader, found, replace(EVALUATION, batch_size=12)) for loader in LOADERS]
    difference = differences(*(loader.batches(0) for loader in loaders))
    worst = dict(zip(found.files, difference.amax((1, 2, 3)).tolist(), strict=True))
    assert max(worst.values()) <= 1, worst


@pytest.mark.parametrize("loader", LOADERS)
def test_thread_count_and_prefetch_do_not_show(loader, train_set, open_loader):
    first, second = (
        open_loader(loader, train_set, TRAIN, threads=threads, prefetch=prefetch)
        for threads, prefetch in (((1, 1), (3, 4)) if loader is DaliLoader else ((0, 1), (2, 2)))
    )
    for epoch in (0, 1):
        assert_same(first.batches(epoch), second.batches(epoch))


@pytest.mark.parametrize("loader", LOADERS)
def test_continuing_at_a_batch_gives_the_same_pixels(loader, train_set, open_loader):
    """Also after an epoch that was left half-way, which must leave nothing behind."""
    whole = list(open_loader(loader, train_set, TRAIN).batches(4))
    again = open_loader(loader, train_set, TRAIN, threads=2)
    assert_same(again.batches(4, first=3), whole[3:])
    assert_same(islice(again.batches(4), 2), whole[:2])
    assert_same(again.batches(4, first=1), whole[1:])
    assert list(again.batches(4, first=len(whole))) == []


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("ranks", "first"), [(2, 0), (3, 2)])
def test_any_number_of_ranks_continues_with_the_same_pixels(loader, ranks, first, train_set, open_loader):
    whole = list(open_loader(loader, train_set, TRAIN).batches(1))
    plans = [replace(TRAIN, rank=rank, world_size=ranks) for rank in range(ranks)]
    parts = [list(open_loader(loader, train_set, plan).batches(1, first)) for plan in plans]
    for batch, *shares in zip(whole[first:], *parts, strict=True):
        for field in range(3):
            assert torch.equal(torch.cat([share[field] for share in shares]), batch[field])


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
        for _ in open_loader(loader, image_set, replace(EVALUATION, batch_size=4), threads=2).batches(0):
            pass
    assert str(caught.value).startswith(f"{victim}: {reason}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(victim)) + 160
    assert time.monotonic() - started < 20


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
@pytest.mark.parametrize("half_way", [False, True])
def test_closing_is_quick_and_leaves_nothing(loader, half_way, train_set):
    plan = replace(TRAIN, samples=len(train_set.files))

    def use(seconds_to_close):
        opened = loader(train_set, plan, device=CPU, interpolation="bilinear", threads=2, prefetch=2)
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
    for _ in range(3):
        use(seconds)
    deadline = time.monotonic() + 2  # a thread that was told to end may need a moment
    while own_tasks() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert own_tasks() <= before
    assert max(seconds) < 1


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_stay_what_they_were(loader, train_set, open_loader):
    """A batch that is kept is not overwritten by the following ones."""
    batches = open_loader(loader, train_set, TRAIN).batches(0)
    kept = next(batches).images
    pixels = kept.clone()
    for _ in batches:
        pass
    assert torch.equal(kept, pixels)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "lanczos"}, "interpolation 'lanczos' is unknown; use bilinear or bicubic"),
        ({"threads": -1}, r"loader\.threads -1 is below [01]"),
        ({"prefetch": 0}, r"loader\.prefetch 0 is below 1"),
    ],
)
def test_impossible_settings(loader, change, message, train_set):
    settings = {"interpolation": "bilinear", "threads": 1, "prefetch": 1, **change}
    with pytest.raises(DataError, match=message):
        loader(train_set, TRAIN, device=CPU, **settings)
