from dataclasses import asdict, replace

import pytest
from augmenting import NONE

from cotnet.config.build import typed
from cotnet.errors import DataError, InputError
from data.augmentation.settings import Augmentation

NAN, INF = float("nan"), float("inf")
SCALE, RATIO = "from 0.0001 to 1, or null", "from 0.01 to 100"
ALPHA = "0, which is off, or from 0.01 to 100"


@pytest.mark.parametrize(
    ("name", "value", "shown", "wanted"),
    [
        ("crop_scale", (0.5, 1.2), "[0.5,1.2]", SCALE),
        ("crop_scale", (0.0, 1.0), "[0,1]", SCALE),
        ("crop_scale", (NAN, 1.0), "[nan,1]", SCALE),
        ("crop_ratio", (0.75, INF), "[0.75,inf]", RATIO),
        ("crop_ratio", (0.75, NAN), "[0.75,nan]", RATIO),
        ("flip", 1.5, "1.5", "from 0 to 1"),
        ("vertical_flip", NAN, "nan", "from 0 to 1"),
        ("color_jitter", 2.0, "2", "from 0 to 1"),
        ("hue", 0.6, "0.6", "from 0 to 0.5"),
        ("switch", -INF, "-inf", "from 0 to 1"),
        ("erasing", NAN, "nan", "from 0 to 1"),
        ("mixup", -0.2, "-0.2", ALPHA),
        ("mixup", 0.001, "0.001", ALPHA),
        ("mixup", NAN, "nan", ALPHA),
        ("cutmix", INF, "inf", ALPHA),
        ("repeats", 0, "0", "from 1 to 1000"),
        ("repeats", 10**12, "1000000000000", "from 1 to 1000"),
        ("mix_epochs", -1, "-1", "at least 0, or null"),
    ],
)
def test_settings_out_of_range(name, value, shown, wanted):
    with pytest.raises(ValueError) as caught:
        replace(NONE, **{name: value})
    assert str(caught.value) == f"{name}={shown} must be {wanted}"


def test_bounds_in_the_wrong_order():
    with pytest.raises(DataError, match=r"^crop_scale=\[0\.5,0\.2\] begins with the larger; swap the two$"):
        replace(NONE, crop_scale=(0.5, 0.2))


def test_what_is_off_is_outside_the_range():
    assert replace(NONE, mixup=0.0, cutmix=0.01).cutmix == 0.01


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("interpolation", "red", "=red is unknown; valid: bicubic, bilinear"),
        ("mix_by", "red", "=red is unknown; valid: batch, element, pair"),
        ("erasing_fill", "red", "=red is unknown; did you mean rand?"),
        ("crop_ratio", [1.0], "=[1.0] must be a list of 2 numbers"),
        ("progressive", [64, 1.0], "=[64,1.0] must be null or a list of 3 whole numbers"),
        ("flip", 2, "=2 must be from 0 to 1"),
    ],
)
def test_a_configuration_is_checked(name, value, message):
    with pytest.raises(InputError) as caught:
        typed(Augmentation, asdict(NONE) | {name: value}, "augmentation")
    assert str(caught.value) == f"augmentation.{name}{message}"
