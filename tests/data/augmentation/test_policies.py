import numpy as np
import pytest
import torch
from photographs import photographs
from PIL import Image, ImageEnhance
from scipy import stats
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, _RAND_TRANSFORMS, LEVEL_TO_ARG
from torchvision.transforms import v2

from cotnet.errors import DataError
from data.augmentation.operations import OPERATIONS, Canvas
from data.augmentation.policies import draw, parse
from data.augmentation.transform import apply_drawn
from data.loading.random import Stream, uniforms

N = 20_000
TIMM_NAMES = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "color": "Color",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def drawn(name, *, seed=0, epoch=0, samples=N, height=192, width=224):
    policy = parse(name)
    operation, parameters = draw(policy, np.arange(samples), seed=seed, epoch=epoch, height=height, width=width)
    names = np.array([*policy.operations, ""])[operation]
    return names, parameters[..., 0], parameters[..., 1:]


@pytest.mark.parametrize(
    ("name", "operations", "fires"),
    [
        ("rand-cot-m15-n2-mstd0.5", 16, 0.5),
        ("rand-timm-m9-n2-mstd0.5-inc1", 15, 0.5),
        ("rand-timm-m9-n3", 15, 0.5),
        ("rand-torchvision-m9-n2", 14, 1.0),
        ("trivial-wide", 14, 1.0),
    ],
)
def test_operations_are_drawn_alike_often_and_in_any_order(name, operations, fires):
    names, _, places = drawn(name)
    assert names.shape[1] == parse(name).count
    found, counts = np.unique(names[names != ""], return_counts=True)
    assert len(found) == operations
    assert stats.chisquare(counts).pvalue > 1e-3
    assert (names != "").mean() == pytest.approx(fires, abs=0.01)
    assert stats.kstest(places.ravel(), "uniform").pvalue > 1e-3
    if names.shape[1] == 2:
        pairs, counts = np.unique(names[(names != "").all(1)], axis=0, return_counts=True)
        assert len(pairs) == operations**2, "with replacement, in every order"
        assert stats.chisquare(counts).pvalue > 1e-3
    again = drawn(name)
    assert (again[0] == names).all()
    for other in (drawn(name, epoch=1)[0], drawn(name, seed=1)[0]):
        table = np.zeros((operations + 1, operations + 1))
        kinds = np.unique(names)
        np.add.at(table, (np.searchsorted(kinds, names[:, 0]), np.searchsorted(kinds, other[:, 0])), 1)
        table = table[: len(kinds), : len(kinds)]
        assert stats.chi2_contingency(table).pvalue > 1e-3, "another epoch or seed repeats something"


def values_of(name, **settings):
    """{operation: the distinct values it was drawn with}."""
    names, values, _ = drawn(name, **settings)
    return {operation: np.unique(values[names == operation].round(9)) for operation in np.unique(names) if operation}


@pytest.mark.parametrize("magnitude", [0, 1, 4, 7, 9, 10])
@pytest.mark.parametrize("increasing", [False, True])
def test_timm_strengths_are_timms(magnitude, increasing):
    found = values_of(f"rand-timm-m{magnitude}-n2{'-inc1' if increasing else ''}")
    known = _RAND_INCREASING_TRANSFORMS if increasing else _RAND_TRANSFORMS
    for operation, values in found.items():
        theirs = TIMM_NAMES[operation]
        theirs = f"{theirs}Increasing" if f"{theirs}Increasing" in known else theirs
        assert theirs in known
        if rule := LEVEL_TO_ARG[theirs]:
            expected = np.unique(np.round([rule(magnitude, {})[0] for _ in range(60)], 9))
            side = {"translate_x": 224, "translate_y": 192}.get(operation, 1)
            np.testing.assert_allclose(values, np.unique(expected * side), atol=1e-6, err_msg=operation)
    assert sorted(TIMM_NAMES) == sorted(found)


@pytest.mark.parametrize("mean", [0, 5, 9, 10])
@pytest.mark.parametrize("variant", ["", "-inc1"])
def test_timm_magnitude_is_normal_and_cut_at_its_ends(mean, variant):
    names, values, _ = drawn(f"rand-timm-m{mean}-n2-mstd0.5{variant}")
    rotation, contrast = (values[names == operation] for operation in ("rotate", "contrast"))
    if variant:
        contrast = np.abs(contrast[contrast > 0.1 + 1e-9] - 1)  # below 1 at magnitude 10 it is cut off at 0.1
        assert (contrast <= 0.9 + 1e-9).all()
    for magnitude in (np.abs(rotation) / 3, contrast / 0.09 if variant else (contrast - 0.1) / 0.18):
        middle = magnitude[(magnitude > 1e-9) & (magnitude < 10 - 1e-9)]
        low, high = stats.norm.cdf(np.array([-mean, 10 - mean]) / 0.5)
        inside = stats.truncnorm(-mean / 0.5, (10 - mean) / 0.5, mean, 0.5)
        assert stats.kstest(middle, inside.cdf).pvalue > 1e-3
        if not (variant and mean == 10):
            assert len(middle) / len(magnitude) == pytest.approx(high - low, abs=0.05)


@pytest.mark.parametrize(
    "name", ["rand-cot-m15-n2-mstd0.5", "rand-timm-m9-n2-mstd0.5", "rand-torchvision-m9-n2", "trivial-wide"]
)
def test_signs_are_even(name):
    names, values, _ = drawn(name)
    for operation in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        found = values[(names == operation) & (values != 0)]
        assert stats.binomtest(int((found > 0).sum()), len(found)).pvalue > 1e-3, operation


def test_trivial_magnitudes_are_drawn_alike_often():
    names, values, _ = drawn("trivial-wide")
    bins, counts = np.unique(np.abs(values[names == "rotate"]).round(6), return_counts=True)
    np.testing.assert_allclose(bins, np.arange(31) * 135 / 30, atol=1e-5)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_cot_magnitude_is_the_lower_half_of_a_normal_one():
    names, values, _ = drawn("rand-cot-m15-n2-mstd0.5")
    magnitude = np.abs(values[names == "rotate"]) / 3
    below = magnitude[magnitude < 15 - 1e-9]
    assert stats.kstest(below, lambda x: 2 * stats.norm.cdf((x - 15) / 0.5)).pvalue > 1e-3
    for operation, strongest in (("cutout", 60), ("solarize_add", 165), ("color", 2.8), ("translate_x", 150)):
        found = np.abs(values[names == operation])
        assert (found > strongest - 1e-9).mean() == pytest.approx(0.5, abs=0.06), operation
        assert found.max() == pytest.approx(strongest), operation


def test_cot_strengths_at_the_published_magnitude():
    """Without noise; half of the draws of N(15, 0.5) are cut to exactly these."""
    found = values_of("rand-cot-m15-n2")
    expected = {
        "rotate": [-45, 45],
        "shear_x": [-0.45, 0.45],
        "shear_y": [-0.45, 0.45],
        "translate_x": [-150, 150],
        "translate_y": [-150, 150],
        "posterize": [6],
        "solarize": [384],
        "solarize_add": [165],
        "cutout": [60],
        "color": [2.8],
        "contrast": [2.8],
        "brightness": [2.8],
        "sharpness": [2.8],
        "autocontrast": [0],
        "equalize": [0],
        "invert": [0],
    }
    assert sorted(found) == sorted(expected)
    for operation, values in expected.items():
        assert found[operation].tolist() == pytest.approx(values), operation
    names, values, _ = drawn("rand-cot-m15-n2-mstd0.5")
    strongest = np.abs(values[names == "rotate"]) > 45 - 1e-9
    assert strongest.mean() == pytest.approx(0.5, abs=0.05)
    assert np.abs(values[names == "rotate"]).max() == pytest.approx(45)


@pytest.mark.parametrize(
    ("name", "transform", "bins"),
    [(f"rand-torchvision-m{m}-n2", v2.RandAugment, [m]) for m in (0, 5, 9, 30)]
    + [("trivial-wide", v2.TrivialAugmentWide, range(31))],
)
def test_torchvision_strengths_are_torchvisions(name, transform, bins):
    space = {key.lower(): value for key, value in transform._AUGMENTATION_SPACE.items()}
    found = values_of(name)
    assert sorted(operation.replace("_", "") for operation in found) == sorted(space)
    for operation, values in found.items():
        rule, signed = space[operation.replace("_", "")]
        table = rule(31, 192, 224)
        if table is None:
            continue
        magnitudes = np.array([float(table[index]) for index in bins])
        if signed:
            magnitudes = np.concatenate([magnitudes, -magnitudes])
        if operation in ("color", "contrast", "brightness", "sharpness"):
            magnitudes = 1 + magnitudes
        if operation == "solarize":
            magnitudes = 255 * magnitudes
        if operation.startswith("translate"):
            # Theirs is a float32 table: 15.999999 of bin 15 becomes 15 pixels, where 16 is meant.
            magnitudes = np.trunc(magnitudes + np.sign(magnitudes) * 1e-4)
        assert (
            set(values.round(4)) <= set(magnitudes.round(4)) or np.abs(values[:, None] - magnitudes).min(1).max() < 1e-4
        ), operation
        if len(bins) == 1:
            assert len(values) == len(np.unique(magnitudes))


@pytest.mark.parametrize("operation", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_torchvision_geometry_is_the_same_operation(operation):
    """Translation has the other sign (torchvision moves the image, PIL the place that is read); both are drawn."""
    image = photographs()[1].resize((97, 80))
    value = {"shear": 0.27, "translate": -12.0, "rotate": 21.0}[operation.split("_")[0]]
    name = operation.replace("_", " ").title().replace(" ", "")
    backward = -value if operation.startswith("translate") else value
    expected = v2.RandAugment()._apply_image_or_video_transform(
        image, name, backward, v2.InterpolationMode.BILINEAR, {Image.Image: None}
    )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    found = OPERATIONS[operation](pixels, torch.tensor([[value, 0, 0]]).double(), Canvas("bilinear", (0, 0, 0)))
    difference = (found[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()).abs()
    assert (difference > 1).float().mean() < 1 / 500


def test_operations_run_in_drawn_order_on_the_images_that_drew_them():
    images = [image.resize((64, 64)) for image in photographs()[:6]]
    batch = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()
    names = ("brightness", "contrast", "color")
    uniform = uniforms(0, 0, Stream.JITTER, np.arange(6), 6)
    order = uniform[:, :3].argsort(1)
    order[0, 1] = -1  # does nothing
    parameters = np.zeros((6, 3, 3))
    parameters[..., 0] = 0.4 + 1.2 * uniform[:, 3:]
    found = apply_drawn(batch, names, drawn=order, parameters=parameters, canvas=Canvas("bilinear", (0, 0, 0)))
    for row, image in enumerate(images):
        expected = image
        for turn in range(3):
            if order[row, turn] >= 0:
                kind = getattr(ImageEnhance, names[order[row, turn]].title())
                expected = kind(expected).enhance(parameters[row, turn, 0])
        assert np.array_equal(np.asarray(expected), found[row].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "name",
    [
        "rand-m9-n2",
        "rand-dali-m9-n2",
        "rand-timm-m9-n0",
        "rand-cot-m9-n2-inc1",
        "rand-torchvision-m31-n2",
        "rand-torchvision-m9-n2-mstd0.5",
        "trivial",
        "",
        "rand-cot-m1000-n2",
        f"rand-timm-m{'9' * 5000}-n2",
        f"rand-timm-m9-n2-mstd{'9' * 400}",
        "rand-timm-m9-n2-mstdnan",
    ],
)
def test_unknown_policies(name):
    with pytest.raises(DataError) as caught:
        parse(name)
    assert str(caught.value).startswith(f"policy={name} is unknown; use rand-cot-m15-n2-mstd0.5, rand-timm-m9-")
