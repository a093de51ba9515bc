import copy

import pytest
import torch
from torch import nn

from cotnet import models
from cotnet.dense.bodies import headless, stage_maps
from cotnet.dense.pyramid import Batching, CoarseLevels, Pyramid
from cotnet.errors import InputError
from cotnet.models.external import timm_model, torchvision_model

OURS = {
    "cotnet_small": lambda: models.cotnet_small(width=8),
    "pvt_tiny": lambda: models.pvt_tiny(image_size=64),
    "pvt_v2_b0": models.pvt_v2_b0,
    "botnet50": lambda: models.botnet50(image_size=64),
    "se_cotnetd_50": models.se_cotnetd_50,
    "resnest50": models.resnest50,
}
TORCHVISION = ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t"]
TORCHVISION += ["convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "vgg11_bn"]
TIMM = ["resnet18", "convnext_atto", "pvt_v2_b0", "efficientnet_b0", "regnety_002", "densenet121"]


def pyramid(backbone, **changes):
    return Pyramid(backbone, **{"freeze": 0, "channels": 8, "norm": "bn", "extra": "pool"} | changes)


def check(net, strides=None):
    """Each level's size follows from its stride, and every parameter that requires a gradient gets one."""
    levels = net(torch.randn(2, 3, 64, 96))
    sizes = [tuple(x.shape[1:]) for x in levels.values()]
    assert sizes == [(8, -(-64 // stride), -(-96 // stride)) for stride in net.strides]
    assert strides is None or net.strides == strides
    sum(x.square().sum() for x in levels.values()).backward()
    assert [name for name, x in net.named_parameters() if x.requires_grad and x.grad is None] == []


@pytest.mark.parametrize(
    "name",
    ["cotnet_small", "pvt_tiny", "pvt_v2_b0", *[pytest.param(n, marks=pytest.mark.long) for n in list(OURS)[3:]]],
)
def test_levels_of_our_backbones(name):
    check(pyramid(OURS[name]()), (2, 4, 8, 8, 16) if name == "cotnet_small" else (4, 8, 16, 32, 64))


@pytest.mark.long
def test_levels_of_a_dilated_backbone():
    check(pyramid(models.cotnet50(output_stride=8), freeze=2), (4, 8, 8, 8, 16))


@pytest.mark.parametrize(
    "name", [*TORCHVISION[:2], *[pytest.param(n, marks=pytest.mark.long) for n in TORCHVISION[2:]]]
)
def test_levels_of_torchvision(name):
    net = pyramid(torchvision_model(model_name=name), freeze=2)
    if name != "squeezenet1_0":  # its convolutions do not pad
        check(net, (4, 8, 16, 32, 64))
    own = torchvision_model(model_name=name).state_dict()
    assert {key: x.shape for key, x in net.body.state_dict().items()}.items() <= {
        k: x.shape for k, x in own.items()
    }.items()


@pytest.mark.parametrize("name", [TIMM[0], *[pytest.param(name, marks=pytest.mark.long) for name in TIMM[1:]]])
def test_levels_of_timm(name):
    check(pyramid(timm_model(model_name=name), freeze=2), (4, 8, 16, 32, 64))


def test_torchvision_maps_are_those_of_its_own_layers():
    net = torchvision_model(model_name="resnet18").eval()
    images = torch.randn(1, 3, 64, 64)
    x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    layers = [x := layer(x) for layer in (net.layer1, net.layer2, net.layer3, net.layer4)]
    maps = stage_maps(headless(net).eval(), images)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(maps, layers, strict=True))


@pytest.mark.parametrize("make", [torchvision_model, timm_model])
def test_no_pyramid_is_one_line(make):
    name = "vit_b_16" if make is torchvision_model else "vit_tiny_patch16_224"
    with pytest.raises(
        InputError, match=r"^VisionTransformer has no feature pyramid .*; take another backbone"
    ) as error:
        headless(make(model_name=name))
    assert "\n" not in str(error.value)


def test_body_keeps_the_keys_of_the_backbone():
    backbone = models.cotnet_small(width=8)
    keys = set(backbone.state_dict()) - {"fc.weight", "fc.bias"}
    assert {key for key in pyramid(backbone).state_dict() if key.startswith("body.")} == {f"body.{key}" for key in keys}


def test_pvt_without_class_token_is_the_authors_detector():
    """Their last stage has the places' rows of the table and no other token."""
    net = models.pvt_tiny(image_size=64).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = net.forward_stages(images)
        tokens = net.patch_embed4(before[2]).flatten(2).transpose(1, 2)
        table = net.pos_embed4[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
        tokens = tokens + nn.functional.interpolate(table, size=(2, 3), mode="bilinear").flatten(2).transpose(1, 2)
        for block in net.block4:
            tokens = block(tokens, (2, 3))
        maps = headless(net).forward_stages(images)
    assert all(torch.equal(a, b) for a, b in zip(before[:3], maps[:3], strict=True))
    torch.testing.assert_close(maps[3], tokens.transpose(1, 2).unflatten(2, (2, 3)), rtol=0, atol=1e-6)
    smaller = models.pvt_tiny(image_size=32)
    smaller.drop_class_token()
    net.load_state_dict(smaller.state_dict())  # a table of another size is still resized
    assert net.pos_embed4.shape == (1, 4, 512)


@pytest.mark.parametrize(
    ("name", "freeze", "frozen"),
    [
        ("cotnet_small", 2, ("conv1", "bn1", "layer1")),
        ("pvt_tiny", 3, ("patch_embed1", "pos_embed1", "block1", "patch_embed2", "pos_embed2", "block2")),
        ("pvt_v2_b0", 3, ("patch_embed1", "block1", "norm1", "patch_embed2", "block2", "norm2")),
    ],
)
def test_frozen_stages_stay_as_they_are(name, freeze, frozen):
    net = pyramid(OURS[name](), freeze=freeze)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([x for x in net.parameters() if x.requires_grad], 0.1)
    net.eval().train()
    sum(x.square().mean() for x in net(torch.randn(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    changed = {
        key.split(".")[1]
        for key, x in net.state_dict().items()
        if key.startswith("body.") and not torch.equal(x, before[key])
    }
    parts = {key.split(".")[0] for key in net.body.state_dict()}
    assert changed == parts - set(frozen)
    twin = copy.deepcopy(net)
    twin.load_state_dict(before)
    assert twin.train().body.get_submodule(frozen[0]).training is False
    assert set(before) == set(pyramid(OURS[name]()).state_dict())  # weights fit with any freeze


def test_freeze_5_leaves_the_pyramid_only():
    names = [name for name, x in pyramid(models.cotnet_small(width=8), freeze=5).named_parameters() if x.requires_grad]
    assert names
    assert all(name.startswith("fpn.") for name in names)


def test_coarse_levels_have_no_relu():
    net = CoarseLevels(4, 4)
    c5, p5 = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    maps, names = net([p5], [c5], ["0"])
    assert names == ["0", "p6", "p7"]
    assert torch.equal(maps[2], net.p7(net.p6(c5)))
    assert (maps[1] < 0).any()


def test_batches_are_normalised_and_padded_with_zeros():
    batching = Batching((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    images = [torch.full((3, 40, 33), 255, dtype=torch.uint8), torch.zeros(3, 64, 20, dtype=torch.uint8)]
    batch, targets = batching(images)
    assert (batch.tensors.shape, batch.image_sizes, targets) == ((2, 3, 64, 64), [(40, 33), (64, 20)], None)
    torch.testing.assert_close(batch.tensors[0, :, 39, 32], torch.tensor([1.0, 3.0, 1.0]))
    torch.testing.assert_close(batch.tensors[1, :, 63, 19], torch.tensor([-1.0, -1.0, 0.0]))
    assert not batch.tensors[0, :, 40:].any()
    assert not batch.tensors[0, :, :, 33:].any()
    assert batching.state_dict() == {}
