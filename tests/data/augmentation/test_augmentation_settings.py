from dataclasses import replace

import pytest
from augmenting import NONE

from cotnet.errors import DataError

NAN, INF = float("nan"), float("inf")
SCALE, RATIO = "two numbers, 0.0001 <= low <= high <= 1", "two numbers, 0.01 <= low <= high <= 100"
ALPHA = "0, which is off, or from 0.01 to 100"
GROWTH = "a size in pixels of at least 1, the epoch from which it grows and a later one until which"


@pytest.mark.parametrize(
    ("name", "value", "shown", "wanted"),
    [
        ("crop_scale", (0.5, 0.2), "[0.5, 0.2]", SCALE),
        ("crop_scale", (0.5, 1.2), "[0.5, 1.2]", SCALE),
        ("crop_scale", (0.0, 1.0), "[0, 1]", SCALE),
        ("crop_scale", (NAN, 1.0), "[nan, 1]", SCALE),
        ("crop_ratio", (1.0,), "[1]", RATIO),
        ("crop_ratio", (0.75, INF), "[0.75, inf]", RATIO),
        ("crop_ratio", (0.75, NAN), "[0.75, nan]", RATIO),
        ("flip", 1.5, "1.5", "from 0 to 1"),
        ("vertical_flip", NAN, "nan", "from 0 to 1"),
        ("color_jitter", 2.0, "2", "from 0 to 1"),
        ("hue", 0.6, "0.6", "from 0 to 0.5"),
        ("switch", -INF, "-inf", "from 0 to 1"),
        ("erasing", NAN, "nan", "from 0 to 1"),
        ("mixup", -0.2, "-0.2", ALPHA),
        ("mixup", NAN, "nan", ALPHA),
        ("cutmix", INF, "inf", ALPHA),
        ("repeats", 0, "0", "from 1, every image once, to 1000; PVT uses 3"),
        ("repeats", 10**12, "1000000000000", "from 1, every image once, to 1000; PVT uses 3"),
        ("progressive", (0, 1.0, 2.0), "[0, 1, 2]", GROWTH),
        ("progressive", (64, 2.0, 2.0), "[64, 2, 2]", GROWTH),
        ("progressive", (64, -1.0, 2.0), "[64, -1, 2]", GROWTH),
        ("progressive", (64, NAN, 2.0), "[64, nan, 2]", GROWTH),
        ("progressive", (64, 1.0, INF), "[64, 1, inf]", GROWTH),
        ("progressive", (64, 1.0), "[64, 1]", GROWTH),
        ("mix_epochs", -1, "-1", "at least 0, or null to mix to the end"),
    ],
)
def test_settings_out_of_range(name, value, shown, wanted):
    with pytest.raises(DataError) as caught:
        replace(NONE, **{name: value})
    assert str(caught.value) == f"{name}={shown} must be {wanted}"


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("interpolation", "bilinear or bicubic"),
        ("mix_by", "batch or pair or element"),
        ("erasing_fill", "const or rand or pixel"),
    ],
)
def test_unknown_choices(name, choices):
    with pytest.raises(DataError) as caught:
        replace(NONE, **{name: "red"})
    assert str(caught.value) == f"{name}=red is unknown; use {choices}"
