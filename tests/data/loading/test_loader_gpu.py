"""Decoding and resizing on a GPU: the same samples, bit for bit again, and the pixel bounds of the DALI loader."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from loaders import EVALUATION, TRAIN, assert_same
from photographs import make_imagenet
from PIL import Image

from cotnet.errors import DataError
from data.loading.dali import DaliLoader
from data.loading.torchvision import TorchvisionLoader
from data.sets.read import read_split

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def lossless(train_set, tmp_path_factory):
    """The same photographs as PNG, which DALI decodes on the CPU: what differs then is the resizing."""
    root = tmp_path_factory.mktemp("lossless")
    for index, file in enumerate(train_set.files):
        path = (root / "train" / file).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(train_set.path(index)) as image:
            image.convert("RGB").save(path)
    return read_split(root, "train")


def compared(image_set, plan, open_loader, interpolation):
    """Absolute differences (images, 3, S, S) from the torchvision loader over an epoch."""
    found = open_loader(DaliLoader, image_set, plan, device=GPU, interpolation=interpolation, threads=2).batches(1)
    plain = open_loader(TorchvisionLoader, image_set, plan, interpolation=interpolation).batches(1)
    parts = []
    for batch, other in zip(found, plain, strict=True):
        assert (batch.images.device, batch.targets.device, batch.indices.device.type) == (GPU, GPU, "cpu")
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        assert torch.equal(batch.indices, other.indices)
        assert torch.equal(batch.targets.cpu(), other.targets)
        parts.append((batch.images.cpu().int() - other.images.int()).abs())
    return torch.cat(parts)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("plan", [TRAIN, EVALUATION])
def test_pixels_within_their_bounds(interpolation, plan, lossless, open_loader):
    difference = compared(lossless, plan, open_loader, interpolation)
    edge, bound = (1, 1) if interpolation == "bilinear" else (2, 8)
    assert difference[..., edge:-edge, edge:-edge].max() <= bound
    assert difference.max() <= (bound if plan is EVALUATION else 16)
    assert difference.float().mean() < 0.25


@pytest.mark.parametrize("plan", [TRAIN, EVALUATION])
def test_jpegs_decode_nearly_alike(plan, train_set, open_loader):
    """nvJPEG's inverse transform and upsampling round otherwise than libjpeg's; the picture must be in its place."""
    difference = compared(train_set, plan, open_loader, "bilinear").float()
    assert difference.mean() < 2
    assert difference.mean((1, 2, 3)).max() < 6


def test_the_same_pixels_again_from_any_batch_and_any_threads(train_set, open_loader):
    """Also after an epoch that was left half-way, and with another prefetch."""
    whole = list(open_loader(DaliLoader, train_set, TRAIN, device=GPU, threads=1, prefetch=1).batches(4))
    kept = [batch.images.clone() for batch in whole]
    again = open_loader(DaliLoader, train_set, TRAIN, device=GPU, threads=3, prefetch=3)
    assert_same(again.batches(4, first=3), whole[3:])
    assert_same(islice(again.batches(4), 2), whole[:2])
    assert_same(again.batches(4, first=1), whole[1:])
    torch.cuda.synchronize()
    assert all(torch.equal(batch.images, images) for batch, images in zip(whole, kept, strict=True)), "overwritten"


@pytest.mark.parametrize("share", [30, 60, 95])
def test_a_jpeg_that_was_cut_off_is_named(share, tmp_path, open_loader):
    image_set = read_split(make_imagenet(tmp_path, classes=2, train=6, val=1), "train")
    victim = image_set.path(7)
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) * share // 100])
    with pytest.raises(DataError) as caught:
        list(open_loader(DaliLoader, image_set, replace(EVALUATION, batch_size=4), device=GPU).batches(0))
    assert str(caught.value).startswith(f"{victim}: damaged image (image file is truncated")
    assert "\n" not in str(caught.value)


def test_memory_of_the_gpu_stays_flat_over_20_epochs(train_set, open_loader):
    loader = open_loader(DaliLoader, train_set, TRAIN, device=GPU)
    free = []
    for epoch in range(20):
        for batch in loader.batches(epoch):
            del batch
        torch.cuda.synchronize()
        free.append(torch.cuda.mem_get_info(GPU)[0])
    assert min(free[3:6]) - min(free[10:]) < 16 * 2**20, free


@pytest.mark.parametrize("plan", [TRAIN, EVALUATION])
def test_an_image_has_the_same_pixels_in_any_batch(plan, train_set, open_loader):
    """Other images beside it, of other sizes and subsamplings, and alone."""
    pixels = {}
    for batch_size in (1, 5, 16, 32):
        loader = open_loader(DaliLoader, train_set, replace(plan, batch_size=batch_size), device=GPU)
        for batch in loader.batches(3):
            for index, image in zip(batch.indices.tolist(), batch.images.cpu(), strict=True):
                if index >= 0:
                    assert torch.equal(pixels.setdefault(index, image), image), (index, batch_size)
    assert len(pixels) == 32


def test_decoded_on_the_cpu_for_a_gpu(train_set, open_loader):
    """The CPU's pixels, on the GPU."""
    here = open_loader(DaliLoader, train_set, TRAIN).batches(2)
    there = open_loader(DaliLoader, train_set, TRAIN, device=GPU, decode="cpu").batches(2)
    for batch, other in zip(there, here, strict=True):
        assert (batch.images.device, batch.targets.device, batch.indices.device.type) == (GPU, GPU, "cpu")
        assert torch.equal(batch.images.cpu(), other.images)
        assert torch.equal(batch.targets.cpu(), other.targets)
