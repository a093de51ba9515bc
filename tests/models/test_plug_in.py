"""CoT in networks of torchvision and our own, and the simplified block in circulation."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from cotnet import models
from cotnet.models.contextual import CoTLayer
from cotnet.models.plug_in import CoTAttention, plug_in


def maps_of(model, images):
    x, maps = images, []
    for name, child in model.named_children():
        if name == "avgpool":
            return maps
        x = child(x)
        if name.startswith("layer"):
            maps.append(tuple(x.shape))
    return maps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "count"),
    [
        (torchvision.models.resnet50, 16),
        (torchvision.models.resnet18, 16),
        (torchvision.models.resnext50_32x4d, 16),
        (models.resnet50, 16),
        (models.seresnet50, 16),
    ],
)
def test_replaces_every_3x3_of_the_blocks(build, count):
    with torch.device("meta"):
        model, images = build().eval(), torch.zeros(1, 3, 65, 97)
        shapes = maps_of(model, images)
        blocks = [name for name, module in model.named_modules() if getattr(module, "kernel_size", None) == (3, 3)]
        blocks = [name for name in blocks if name.startswith("layer")]
        replaced = plug_in(model)
        assert replaced == blocks
        assert len(replaced) == count
        assert maps_of(model, images) == shapes
        assert sum(isinstance(module, CoTLayer) for module in model.modules()) == count


def test_plugged_into_our_resnet_is_a_cotnet():
    """With the same weights: only the norm and activation that follow the replaced convolution remain between."""
    torch.manual_seed(0)
    model, cotnet = models.resnet50(num_classes=3), models.cotnet50(num_classes=3)
    plug_in(model)
    for name, _ in list(model.named_modules()):
        if name.endswith((".bn2", ".act2")):
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, nn.Identity())
    weights = {key.replace(".conv2.1.", ".conv2."): value for key, value in model.state_dict().items()}
    cotnet.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    assert_close(model.eval()(images), cotnet.eval()(images))


def test_other_layers_and_trained_networks():
    model = torchvision.models.resnet18(num_classes=3).double()
    replaced = plug_in(model, layer=CoTAttention)
    assert isinstance(model.layer1[0].conv1, CoTAttention)
    assert len(replaced) == 16
    model(torch.randn(2, 3, 64, 64, dtype=torch.float64)).sum().backward()
    assert model.layer4[1].conv2.key_embed[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (torchvision.models.vgg11, "VGG is not a ResNet"),
        (models.pvt_tiny, "PVT is not a ResNet"),
        (models.cotnet50, "layer1.0 has no 3x3 convolution"),
        (lambda: torchvision.models.resnet50(width_per_group=60), "layer1.0.conv2 cannot be replaced: .*60 channels"),
        (
            lambda: torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]),
            "layer4.1.conv2 is dilated",
        ),
    ],
)
def test_everything_else_is_refused_by_name(build, message):
    with torch.device("meta"):
        model = build()
        before = [(name, type(module)) for name, module in model.named_modules()]
        with pytest.raises(ValueError, match=message):
            plug_in(model)
        assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_cot_attention_by_its_definition():
    torch.manual_seed(0)
    block, x = CoTAttention(dim=8, kernel_size=5).double().eval(), torch.randn(2, 8, 3, 4, dtype=torch.float64)
    static = F.relu(block.key_embed[1](F.conv2d(x, block.key_embed[0].weight, padding=2, groups=4)))
    logits = block.attention_embed(torch.cat([static, x], 1)).reshape(2, 8, 25, 12).mean(2)
    attention = (logits.exp() / logits.exp().sum(2, keepdim=True)).reshape(2, 8, 3, 4)
    assert_close(block(x), static + attention * block.value_embed(x))


def test_cot_attention_has_the_names_in_circulation():
    names = [name for name, _ in CoTAttention().named_parameters()]
    assert names == [
        "key_embed.0.weight",
        "key_embed.1.weight",
        "key_embed.1.bias",
        "value_embed.0.weight",
        "value_embed.1.weight",
        "value_embed.1.bias",
        "attention_embed.0.weight",
        "attention_embed.1.weight",
        "attention_embed.1.bias",
        "attention_embed.3.weight",
        "attention_embed.3.bias",
    ]
