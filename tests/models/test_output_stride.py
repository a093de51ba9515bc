"""output_stride: later stages keep their resolution and dilate, as timm's networks do."""

from functools import partial

import pytest
import timm
import torch
from nets import random_norms
from torch import nn
from torch.nn.functional import interpolate
from torch.testing import assert_close

from cotnet import models
from cotnet.config.build import settings_of_target
from cotnet.models import cotnet, global_attention, local_attention, resnet
from cotnet.models.resnet_base import ResNet, stem

DILATED = [name for name in models.__all__ if "output_stride" in settings_of_target(getattr(models, name))[0]]
IN_CI = ("botnet50", "se_cotnetd_50", "resnest50")  # besides cotnet_small; the others are long

pytestmark = pytest.mark.usefixtures("registered")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        pytest.param("resnet50", "resnet50", marks=pytest.mark.slow),
        *(pytest.param(n, n, marks=pytest.mark.long) for n in ("resnet50d", "seresnet50", "resnext50_32x4d")),
        pytest.param("resnest50", "resnest50d", marks=pytest.mark.long),
    ],
)
def test_output_stride_is_timms(name, theirs):
    torch.manual_seed(0)
    twin, images = random_norms(timm.create_model(theirs, num_classes=5)), torch.randn(2, 3, 34, 49).double()
    for stride in (16, 8):
        with torch.device("meta"):
            other = timm.create_model(theirs, num_classes=5, output_stride=stride).eval()
            own = getattr(models, name)(num_classes=5, output_stride=stride).eval()
        for model in (other, own):
            model.load_state_dict(twin.state_dict(), assign=True)
        assert_close(own(images), other(images), rtol=0, atol=1e-12)
        assert (own(images) - twin(images)).abs().max() > 1e-3
        # Channels, stride and module of the five maps, and the maps; timm's keep more keys.
        assert own.feature_info == [
            {key: row[key] for key in ("num_chs", "reduction", "module")} for row in other.feature_info
        ]
        pairs = zip(own.forward_intermediates(images)[1], other.forward_intermediates(images)[1], strict=True)
        assert all((a - b).abs().max() < 1e-10 for a, b in pairs)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow, pytest.mark.long][: 1 + (name not in IN_CI)])
        if name != "cotnet_small"
        else name
        for name in DILATED
    ],
)
def test_every_output_stride_has_the_same_keys(name):
    """And maps of the strides that it says."""
    with torch.device("meta"):
        plain = getattr(models, name)()
        for limit in (16, 8):
            model = getattr(models, name)(output_stride=limit).eval()
            assert model.stage_strides == tuple(min(stride, limit) for stride in plain.stage_strides)
            shapes = {key: x.shape for key, x in model.state_dict().items()}
            assert shapes.keys() == plain.state_dict().keys()
            tables = {key for key, x in plain.state_dict().items() if x.shape != shapes[key]}
            assert all(key.endswith((".vertical", ".horizontal")) for key in tables)
            maps = model.forward_intermediates(torch.empty(1, 3, 64, 96), intermediates_only=True)
            for x, row in zip(maps, model.feature_info, strict=True):
                assert x.shape[1:] == (row["num_chs"], 64 // row["reduction"], 96 // row["reduction"])


def close_operators():
    """Operators whose results depend on neighbours, and on means of the whole map."""
    yield from (resnet.convolution, resnet.grouped, resnet.split_attention, resnet.selective_kernel)
    yield from (cotnet.cot, cotnet.coxt, cotnet.split, partial(cotnet.blurred, operator=cotnet.cot))
    yield from (partial(cotnet.cot, fusion="linear", kernel_size=5, dilation=3), local_attention.stand_alone)
    yield local_attention.local_relation


@torch.no_grad()
@pytest.mark.parametrize("operator", list(close_operators()))
def test_dilated_operators_see_a_map_of_repeated_positions_as_the_map_itself(operator):
    """Each position twice in both directions and neighbours twice as far: the same values, each twice."""
    torch.manual_seed(0)
    (plain, spread), own = (nn.Sequential(), nn.Sequential()), getattr(operator, "keywords", {}).get("dilation", 1)
    for net, dilation in ((plain, own), (spread, 2 * own)):
        for name, module in operator(64, 1, dilation=dilation).items():
            net.add_module(name, module)
    spread.load_state_dict(plain.state_dict())
    maps = torch.randn(2, 64, 6, 7).double()
    expected = twice(plain.double().eval()(maps.clone()))
    assert_close(spread.double().eval()(twice(maps)), expected, rtol=0, atol=1e-12)


def twice(maps):
    return interpolate(maps, scale_factor=2, mode="nearest-exact")


@torch.no_grad()
def test_augmented_convolutions_dilate():
    torch.manual_seed(0)
    plain = global_attention.augmented(64, 1, side=6)["conv2"].double()
    spread = global_attention.augmented(64, 1, side=6, dilation=2)["conv2"].double()
    spread.load_state_dict(plain.state_dict())
    maps, convolved = torch.randn(1, 64, 6, 6).double(), 64 - plain.values
    assert_close(spread(twice(maps))[:, :convolved], twice(plain(maps)[:, :convolved]), rtol=0, atol=1e-12)


def test_a_stage_begins_with_the_dilation_of_the_stage_before():
    """Cot's own dilation is multiplied."""
    with torch.device("meta"):
        model = models.cotnet50(output_stride=8, dilation=3)
    found = [[block.conv2.dilation for block in getattr(model, name)][:2] for name in model.stages]
    assert found == [[3, 3], [3, 3], [3, 6], [6, 12]]
    assert not any(hasattr(block, "avd") for name in ("layer3", "layer4") for block in getattr(model, name))


@pytest.mark.slow
@torch.no_grad()
def test_tables_of_positions_are_resized_for_another_output_stride():
    torch.manual_seed(0)
    plain = models.botnet50(image_size=64, num_classes=5).eval()
    dense = models.botnet50(image_size=64, num_classes=5, output_stride=8).eval()
    sides = [block.conv2.vertical.shape[0] for net in (plain, dense) for block in net.layer4]
    assert sides == [7, 3, 3, 15, 15, 15]
    dense.load_state_dict(plain.state_dict())
    table = plain.layer4[1].conv2.vertical
    assert_close(dense.layer4[1].conv2.vertical[7], table[1])  # offset 0
    assert dense(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_what_cannot_dilate_is_one_line():
    def fixed(width, stride):
        return {"conv2": nn.Conv2d(width, width, 3, stride, 1)}

    small = partial(ResNet, stem, [[fixed] * 2] * 4, width=4, channels=8)
    small(output_stride=32)
    with pytest.raises(ValueError, match=r"^fixed takes no dilation, .*; leave output_stride at 32$"):
        small(output_stride=16)
    with pytest.raises(ValueError, match=r"^output_stride=4 is unknown; give 8, 16 or 32$"):
        models.resnet50(output_stride=4)
    with pytest.raises(ValueError, match=r"^pvt_tiny has no setting output_stride; it has image_size, num_classes, "):
        timm.create_model("pvt_tiny", output_stride=16)
