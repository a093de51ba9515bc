"""Every operation against PIL at fixed parameters on photographs."""

import numpy as np
import pytest
import torch
from photographs import photographs
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from data.augmentation.operations import OPERATIONS, Canvas
from data.augmentation.policies import draw, parse
from data.loading.random import Stream, uniforms

FILL = (124, 116, 104)
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def pictures():
    """Photographs of one odd size, one of them dark, one flat, one with an empty channel."""
    images = [image.resize((97, 80)) for image in photographs()]
    images.append(images[0].point(lambda level: level // 3 + 20))
    images.append(Image.new("RGB", (97, 80), (9, 9, 200)))
    images.append(Image.merge("RGB", (images[1].getchannel(0), Image.new("L", (97, 80)), images[1].getchannel(2))))
    return images


def batch_of(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


def differences(operation, value, expected, *, interpolation="bicubic"):
    images = pictures()
    batch = batch_of(images)
    given = batch.clone()
    parameters = torch.tensor([[value, 0.3, 0.9]], dtype=torch.float64).expand(len(images), 3)
    found = OPERATIONS[operation](batch, parameters, Canvas(interpolation, FILL))
    assert found.dtype == torch.uint8
    assert torch.equal(batch, given), "the given batch was changed"
    return (found.int() - batch_of([expected(image) for image in images]).int()).abs()


def enhanced(name, factor):
    return lambda image: getattr(ImageEnhance, name)(image).enhance(factor)


@pytest.mark.parametrize(
    ("operation", "value", "expected"),
    [
        ("identity", 0, lambda image: image),
        ("autocontrast", 0, ImageOps.autocontrast),
        ("equalize", 0, ImageOps.equalize),
        ("invert", 0, ImageOps.invert),
        *[("posterize", bits, lambda image, bits=bits: ImageOps.posterize(image, bits)) for bits in (1, 4, 6, 8)],
        *[("solarize", level, lambda image, level=level: ImageOps.solarize(image, level)) for level in (0, 100, 256)],
        *[
            ("solarize_add", add, lambda image, add=add: image.point(lambda i: min(255, i + add) if i < 128 else i))
            for add in (0, 50, 165)
        ],
        *[
            (
                name.lower(),
                factor,
                lambda image, name=name, factor=factor: getattr(ImageEnhance, name)(image).enhance(factor),
            )
            for name in ("Brightness", "Color", "Contrast", "Sharpness")
            for factor in (0.0, 0.1, 0.73, 1.0, 1.9, 2.8)
        ],
    ],
)
def test_colour_operations_equal_pil(operation, value, expected):
    assert differences(operation, value, expected).max() == 0


@pytest.mark.parametrize("share", [0.0, 0.1, -0.37, 0.5])
def test_hue_is_moved_in_pils_hsv(share):
    def expected(image):
        hue, saturation, value = image.convert("HSV").split()
        return Image.merge("HSV", (hue.point(lambda i: (i + int(share * 255)) % 256), saturation, value)).convert("RGB")

    assert differences("hue", share, expected).max() == 0


def test_no_bits_are_black():
    assert differences("posterize", 0, lambda image: image.point(lambda _: 0)).max() == 0  # PIL itself refuses 0


def transformed(matrix, interpolation):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, RESAMPLING[interpolation], fillcolor=FILL
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("value", [0.0, 0.3, -0.45, 0.99])
def test_shear(value, interpolation):
    for operation, matrix in (("shear_x", (1, value, 0, 0, 1, 0)), ("shear_y", (1, 0, 0, value, 1, 0))):
        close(differences(operation, value, transformed(matrix, interpolation), interpolation=interpolation))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("value", [0.0, 7.0, -20.25, 43.65, 150.0])
def test_translate(value, interpolation):
    for operation, matrix in (("translate_x", (1, 0, value, 0, 1, 0)), ("translate_y", (1, 0, 0, 0, 1, value))):
        close(differences(operation, value, transformed(matrix, interpolation), interpolation=interpolation))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("value", [0.0, 13.7, -45.0, 88.0, 135.0])
def test_rotate(value, interpolation):
    def expected(image):
        return image.rotate(value, RESAMPLING[interpolation], fillcolor=FILL)

    close(differences("rotate", value, expected, interpolation=interpolation))


def close(difference):
    """At most one grey level, but for one pixel in 500 whose position rounds to another pixel or beyond the border."""
    assert (difference > 1).any(1).float().mean() <= 1 / 500
    assert (difference > 0).float().mean() <= 1 / 100


def corners(size, half, share):
    """Where the release begins and ends along one side; numpy's uniform(size) lies between size and 1."""
    start = max(0, size + (1 - size) * share - half)
    return int(start), min(size, int(start) + 2 * half)


def cut_out(image, half, row, column):
    """The release's rectangle, drawn by PIL, which fills both ends."""
    (left, right), (top, bottom) = corners(image.width, half, column), corners(image.height, half, row)
    erased = image.copy()
    ImageDraw.Draw(erased).rectangle((left, top, right, bottom), FILL)
    return erased


@pytest.mark.parametrize("half", [0, 8, 60])
def test_cutout(half):
    assert differences("cutout", half, lambda image: cut_out(image, half, 0.3, 0.9)).max() == 0


def test_cutout_is_the_releases_at_any_place():
    uniform = uniforms(0, 0, Stream.POLICY, np.arange(300), 3)
    image = photographs()[0].resize((97, 80))
    halves = np.trunc(61 * uniform[:, 0])
    parameters = torch.from_numpy(np.stack([halves, *uniform[:, 1:].T], axis=1))
    found = OPERATIONS["cutout"](batch_of([image] * 300), parameters, Canvas("bicubic", FILL))
    expected = [cut_out(image, int(half), *place) for half, *place in parameters.tolist()]
    assert torch.equal(found, batch_of(expected))


@pytest.mark.parametrize(("name", "share"), [("rand-cot-m15-n2", 0.2535), ("rand-cot-m15-n2-mstd0.5", 0.2454)])
@pytest.mark.slow
def test_share_of_224_pixels_that_cutout_erases(name, share):
    """The means over 4 million places by the release's formula; the square has 121 pixels at the full magnitude."""
    policy = parse(name)
    drawn, parameters = draw(policy, np.arange(60_000), seed=0, epoch=0, height=224, width=224)
    chosen = torch.from_numpy(parameters[drawn == policy.operations.index("cutout")])[:3000]
    black = torch.zeros(1, 3, 224, 224, dtype=torch.uint8).expand(len(chosen), -1, -1, -1)
    erased = OPERATIONS["cutout"](black, chosen, Canvas("bicubic", (1, 1, 1)))
    shares = erased[:, 0].float().mean((1, 2))
    assert shares.max() == pytest.approx((121 / 224) ** 2, abs=1e-6)
    assert shares.mean() == pytest.approx(share, abs=0.004)
