"""The pixels of both loaders against each other, against torchvision's own transforms and against PIL."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from loaders import EVALUATION, LOADERS, TRAIN, assert_as_pil, differences
from photographs import photographs
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, v2

from data.loading.dali import DaliLoader, _arguments, _crops, _whole_image
from data.loading.torchvision import TorchvisionLoader
from data.sets.image_set import image_size
from data.sets.read import read_split


def evaluated(image_set, transform):
    return torch.stack([transform(Image.open(image_set.path(i)).convert("RGB")) for i in range(len(image_set.files))])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "crop_ratio"), [(48, 0.875), (33, 0.3), (150, 0.94), (1, 1.0)])
def test_evaluation_is_torchvisions_transforms(interpolation, size, crop_ratio, train_set, open_loader):
    """The torchvision loader bit for bit on PIL images, DALI's bit for bit on tensors."""
    geometry = [v2.Resize(int(size / crop_ratio), InterpolationMode(interpolation)), v2.CenterCrop(size)]
    by_pil = evaluated(train_set, v2.Compose([*geometry, v2.PILToTensor()]))
    by_torch = evaluated(train_set, v2.Compose([v2.PILToTensor(), *geometry]))
    plan = replace(EVALUATION, image_size=size, crop_ratio=crop_ratio)
    for loader, expected in ((TorchvisionLoader, by_pil), (DaliLoader, by_torch)):
        batches = open_loader(loader, train_set, plan, interpolation=interpolation).batches(0)
        assert torch.equal(torch.cat([batch.images for batch in batches])[:32], expected)
    assert_as_pil((by_torch.int() - by_pil.int()).abs(), interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_crops_are_what_pil_makes_of_the_plan(interpolation, train_set, open_loader):
    """The torchvision loader, bit for bit: decode, crop, resize and mirror, with PIL alone."""
    loader = open_loader(TorchvisionLoader, train_set, TRAIN, interpolation=interpolation)
    flips: set[bool] = set()
    for batch in loader.batches(2):
        indices = batch.indices.numpy()
        sizes = np.array([image_size(train_set.path(index)) for index in indices])
        geometry = TRAIN.geometry(2, indices, sizes)
        flips |= set(geometry.flip.tolist())
        for row, image in enumerate(batch.images):
            top, left, height, width = geometry.box[row].tolist()
            with Image.open(train_set.path(indices[row])) as stored:
                crop = stored.convert("RGB").crop((left, top, left + width, top + height))
            made = crop.resize((48, 48), Image.Resampling[interpolation.upper()])
            expected = ImageOps.mirror(made) if geometry.flip[row] else made
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))
    assert flips == {True, False}


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
        work.append(_arguments([str(path) for path in paths], [geometry], [plan.image_size]))
    arguments = iter(work)
    settings = {"batch_size": plan.rank_batch, "num_threads": 1, "device_id": None}
    pipeline = _crops(lambda: next(arguments), "cpu", interpolation, [plan.image_size], **settings)
    found = torch.cat([torch.from_dlpack(pipeline.run()[0].as_tensor()) for _ in work])
    batches = open_loader(TorchvisionLoader, train_set, plan, interpolation=interpolation).batches(0)
    difference = (found.int() - torch.cat([batch.images for batch in batches]).int()).abs()
    edge, bound = (1, 1) if interpolation == "bilinear" else (2, 8)
    assert difference[..., edge:-edge, edge:-edge].max() <= bound
    assert difference.max() <= (bound if plan is EVALUATION else 16)
    assert difference.float().mean() < 0.25


@pytest.mark.parametrize("loader", [DaliLoader, TorchvisionLoader])
def test_several_sizes_of_one_pass(loader, train_set, open_loader):
    """Each image is decoded once and made at each size, as a plan of that size alone makes it."""
    sizes = (EVALUATION.image_size, 33, 96)
    several = list(open_loader(loader, train_set, replace(EVALUATION, more_sizes=sizes[1:])).batches(0))
    for number, size in enumerate(sizes):
        alone = open_loader(loader, train_set, replace(EVALUATION, image_size=size)).batches(0)
        for batch, other in zip(several, alone, strict=True):
            assert torch.equal(batch.images[number], other.images)
            assert torch.equal(batch.indices, other.indices)


def test_several_sizes_in_the_gpus_graph(train_set):
    plan = replace(EVALUATION, more_sizes=(33,))
    indices = plan.indices(0, 0)
    paths = [train_set.path(index % 32) for index in indices]
    geometries = plan.geometries(0, indices, np.array([image_size(path) for path in paths]))
    settings = {"batch_size": plan.rank_batch, "num_threads": 1, "device_id": None}

    def made(geometries, sides):
        work = iter([_arguments([str(path) for path in paths], geometries, sides)])
        outputs = _crops(lambda: next(work), "cpu", "bicubic", sides, **settings).run()
        return [torch.from_dlpack(images.as_tensor()) for images in outputs]

    both = made(geometries, plan.sides)
    for number, side in enumerate(plan.sides):
        assert torch.equal(both[number], made([geometries[number]], [side])[0])


def test_the_gpus_graph_can_be_put_together():
    """DALI checks every operator, argument and device; only the driver is missing here."""
    settings = {"batch_size": 4, "num_threads": 1, "device_id": None}
    for pipeline in (
        _crops(lambda: None, "mixed", "bicubic", [48], **settings),
        _whole_image(lambda: None, "mixed", device_id=None),
    ):
        graph = pipeline.serialize()
        assert b"mixed" in graph
        # All JPEGs take one way, so an image's pixels do not depend on its batch.
        assert struct.pack("<f", 1.0) in graph.partition(b"hw_decoder_load")[2][:40]
        assert b"ImageSlice" not in graph  # see _crops
        assert [device for _, device, *_ in pipeline._generate_build_args()] == ["gpu"]


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


def png_of_16_bits(path, levels):
    """Written by hand: PIL cannot. Levels (height, width, channels) of 16 bits."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_16_bits_a_channel_are_scaled_by_both(tmp_path, open_loader):
    """Every level, in each kind of PNG and in grey TIFF, as the PNG standard recommends (13.12)."""
    folder = tmp_path / "train" / "deep"
    folder.mkdir(parents=True)
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    colour = np.stack([ramp, ramp[::-1], ramp.T, ramp], axis=2)
    for channels in (1, 2, 3, 4):
        png_of_16_bits(folder / f"{channels}.png", colour[..., :channels])
    for name, order in (("5.tif", "<"), ("6.tif", ">")):
        Image.fromarray(ramp.astype(f"{order}u2")).save(folder / name)
    found = read_split(tmp_path, "train")
    plan = replace(EVALUATION, image_size=256, crop_ratio=1.0, batch_size=6)
    scaled = np.floor(255 * colour.astype(float) / 65535 + 0.5)
    grey, rgb = (scaled[..., [0, 0, 0]].transpose(2, 0, 1), scaled[..., :3].transpose(2, 0, 1))
    for loader in LOADERS:
        images = next(open_loader(loader, found, plan).batches(0)).images.numpy()
        for image, expected in zip(images, (grey, grey, rgb, rgb, grey, grey), strict=True):
            assert np.array_equal(image, expected)
