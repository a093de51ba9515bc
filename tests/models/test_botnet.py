"""BoTNet: the counts that follow from the paper, the attention layer against timm's, other image sizes."""

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from torch.nn import functional as F
from torch.testing import assert_close

from cotnet import models
from cotnet.models.botnet import BoTAttention, resample
from cotnet.models.weights import load_weights

# Parameters by arithmetic: ResNet (+ gates of 1/16) with the 3x3 convolutions of c5 replaced by three projections and
# two tables of 2 * side - 1 rows.
COUNTS = {
    ("botnet50", 224): 20_852_008,
    ("botnet50", 1024): 20_903_208,
    ("botnet_s1_50", 224): 20_859_176,
    ("botnet_s1_59", 224): 33_659_480,
    ("botnet_s1_77", 320): 54_234_968,
    ("botnet_s1_110", 224): 54_898_328,
    ("botnet_s1_128", 256): 75_449_240,
}


@pytest.mark.parametrize(("name", "image_size"), COUNTS)
def test_parameters(name, image_size):
    with torch.device("meta"):
        model = getattr(models, name)(image_size=image_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name, image_size]


@pytest.mark.parametrize(("name", "replaced"), [("botnet50", 3), ("botnet101", 3), ("botnet152", 3), ("botnet200", 3)])
def test_differs_from_resnet_in_c5_only(name, replaced):
    """200 has no ResNet among ours: compare with the depths of the paper."""
    depths = {
        "botnet50": (3, 4, 6, 3),
        "botnet101": (3, 4, 23, 3),
        "botnet152": (3, 8, 36, 3),
        "botnet200": (3, 24, 36, 3),
    }
    with torch.device("meta"):
        model = getattr(models, name)()
    assert tuple(len(getattr(model, stage)) for stage in model.stages) == depths[name]
    where = [key for key, module in model.named_modules() if isinstance(module, BoTAttention)]
    assert where == [f"layer4.{block}.conv2" for block in range(replaced)]


@pytest.mark.parametrize("size", [(7, 7), (5, 9)])
def test_attention_equals_timms(size):
    """timm scales q for the positions too only if told so; the paper's q is scaled first."""
    torch.manual_seed(0)
    theirs = BottleneckAttn(64, feat_size=size, num_heads=4, scale_pos_embed=True).double()
    torch.nn.init.normal_(theirs.pos_embed.height_rel)
    torch.nn.init.normal_(theirs.pos_embed.width_rel)
    ours = BoTAttention(64, heads=4, side=7).double()
    with torch.no_grad():
        weights = theirs.qkv.weight.flatten(1).chunk(3)
        for layer, weight in zip((ours.query, ours.key, ours.value), weights, strict=True):
            layer.weight.copy_(weight)
        ours.vertical = torch.nn.Parameter(theirs.pos_embed.height_rel.detach().clone())
        ours.horizontal = torch.nn.Parameter(theirs.pos_embed.width_rel.detach().clone())
    x = torch.randn(2, 64, *size, dtype=torch.float64)
    assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_attention_by_its_definition():
    """Pair by pair, at a size that is not the nominal one."""
    torch.manual_seed(0)
    layer, x = BoTAttention(8, heads=2, side=5).double(), torch.randn(1, 8, 3, 4, dtype=torch.float64)
    tokens = x[0].flatten(1).t()
    query, key, value = (p(tokens).unflatten(1, (2, 4)) for p in (layer.query, layer.key, layer.value))
    vertical, horizontal = resample(layer.vertical, 5), resample(layer.horizontal, 7)
    out = torch.zeros(12, 2, 4, dtype=torch.float64)
    for head in range(2):
        for i in range(12):
            logits = [
                query[i, head] @ (key[j, head] + vertical[j // 4 - i // 4 + 2] + horizontal[j % 4 - i % 4 + 3]) / 2
                for j in range(12)
            ]
            out[i, head] = torch.stack(logits).softmax(0) @ value[:, head]
    assert_close(layer(x)[0].flatten(1).t(), out.flatten(1), rtol=0, atol=1e-12)


def test_content_only():
    layer = BoTAttention(8, heads=2, side=5, positions=False)
    assert [key for key, _ in layer.named_parameters()] == ["query.weight", "key.weight", "value.weight"]
    x = torch.randn(1, 8, 2, 3)
    permutation = torch.randperm(6)
    shuffled = layer(x.flatten(2)[..., permutation].unflatten(2, (2, 3)))
    assert_close(shuffled.flatten(2), layer(x).flatten(2)[..., permutation])  # blind to where things are


@pytest.mark.slow
def test_weights_of_content_only_load(tmp_path):
    source, model = (models.botnet50(num_classes=3, c5=(2,), positions=False) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "content.pt")
    load_weights(model, tmp_path / "content.pt")
    assert_close(dict(model.state_dict()), dict(source.state_dict()), rtol=0, atol=0)


def test_tables_are_resampled_around_offset_zero():
    table = torch.arange(-6.0, 7).unsqueeze(1)  # side 7: offset -6 .. 6 as value
    for side in (1, 4, 7, 10):
        expected = torch.arange(1 - side, side) * 13 / (2 * side - 1)
        assert_close(resample(table, 2 * side - 1).squeeze(1), expected.clamp(-6, 6))
    assert_close(resample(table, 13), table, rtol=0, atol=0)


def test_tables_are_resized_on_load():
    torch.manual_seed(0)
    small, large = models.botnet50(image_size=64, num_classes=3), models.botnet50(image_size=128, num_classes=3)
    large.load_state_dict(small.state_dict())
    assert large.layer4[0].conv2.vertical.shape == (15, 128)
    images = torch.randn(1, 3, 128, 128)
    assert_close(large.eval()(images), small.eval()(images))


def test_settings():
    with torch.device("meta"):
        model = models.botnet50(c4=(4, 5), c5=(0, 2), stride=1, heads=8, positions=False)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BoTAttention)}
    assert list(layers) == ["layer3.4.conv2", "layer3.5.conv2", "layer4.0.conv2", "layer4.2.conv2"]
    assert {layer.heads for layer in layers.values()} == {8}
    assert model.stage_strides == (4, 8, 16, 16)
    assert not any("vertical" in key for key in model.state_dict())


@pytest.mark.parametrize("offsets", [7, 25, 39, 63])
def test_tables_are_resized_as_by_linear_interpolation(offsets):
    """The same bits, by an operator whose gradient is deterministic on a GPU."""
    table = torch.randn(27, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    linear = F.interpolate(table.t()[None], size=offsets, mode="linear")[0].t()
    found = resample(table, offsets)
    assert torch.equal(found, linear)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(result, table, upstream)[0] for result in (found, linear)]
    assert torch.equal(*gradients)
