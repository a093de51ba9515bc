"""The operators that the papers compare with: against timm's layers, or against loops written from the equations."""

import re
from functools import partial

import pytest
import torch
from timm import create_model
from timm.layers.halo_attn import HaloAttn
from timm.layers.lambda_layer import LambdaLayer as TimmLambda
from torch.export import Dim
from torch.testing import assert_close

from cotnet import models
from cotnet.models.global_attention import AugmentedConvolution, LambdaLayer, NonLocalBlock
from cotnet.models.layers import SelectiveKernel
from cotnet.models.local_attention import HaloAttention, LocalRelation, StandAloneAttention, StandAloneStem
from cotnet.models.plug_in import plug_in

LAYERS = {
    "stand_alone": lambda: StandAloneAttention(8, kernel_size=3, heads=2),
    "stem": lambda: StandAloneStem(8, 8, heads=2),
    "local_relation": lambda: LocalRelation(8, kernel_size=3, share=2),
    "halo": lambda: HaloAttention(8, heads=2, block=2, halo=1),
    "augmented": lambda: AugmentedConvolution(8, side=4, heads=2),
    "lambda": lambda: LambdaLayer(8, heads=2, keys=3, window=3),
    "non_local": lambda: NonLocalBlock(8),
    "selective_kernel": lambda: SelectiveKernel(8, groups=4),
}


def made(make):
    torch.manual_seed(0)
    layer = make().double().eval()
    for parameter in layer.parameters():  # zeros would hide a branch
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def one_by_one(layer, x, channel):
    """Channel `channel` at each position, from `layer`'s weights, one position after the other."""
    size, height, width = layer.kernel_size, *x.shape[1:]
    before, result = (size - 1) // 2, torch.zeros(height, width, dtype=x.dtype)
    for y in range(height):
        for x_ in range(width):
            near = [(y + i - before, x_ + j - before) for i in range(size) for j in range(size)]
            inside = [(a, b) if 0 <= a < height and 0 <= b < width else None for a, b in near]
            result[y, x_] = layer_value(layer, x, channel, (y, x_), inside)
    return result


def at(maps, place):
    return maps[:, *place] if place else torch.zeros_like(maps[:, 0, 0])


def layer_value(layer, x, channel, place, near):
    query, key = layer.query(x), layer.key(x)
    if isinstance(layer, LocalRelation):
        group = channel % len(query)
        line = torch.arange(layer.kernel_size, dtype=x.dtype) - layer.kernel_size // 2
        prior = torch.stack([layer.geometry(torch.stack([a, b]))[group] for a in line for b in line])
        logits = torch.stack([query[group, *place] * at(key, one)[group] for one in near]) + prior
        return (logits.softmax(0) * torch.stack([at(x, one)[channel] for one in near])).sum()
    head = slice(channel % layer.heads, None, layer.heads)  # the head's channels
    q, size = query[head, *place], len(layer.rows)
    offsets = [torch.cat([layer.rows[i], layer.columns[j]]) for i in range(size) for j in range(size)]
    logits = torch.stack([q @ (at(key, one)[head] + r) for one, r in zip(near, offsets, strict=True)]) * len(q) ** -0.5
    value = layer.value(x)
    if isinstance(layer, StandAloneAttention):
        values = [at(value, one)[channel] for one in near]
    else:
        mixed = value.unflatten(0, (layer.mixtures, -1))  # (mixtures, C, H, W)
        pairs = [layer.mixture_rows[i] + layer.mixture_columns[j] for i in range(size) for j in range(size)]
        shares = [(layer.mixture @ pair).softmax(0) for pair in pairs]
        values = [
            sum(share[m] * at(mixed[m], one)[channel] for m in range(layer.mixtures))
            for share, one in zip(shares, near, strict=True)
        ]
    return (logits.softmax(0) * torch.stack(values)).sum()


@torch.no_grad()
@pytest.mark.parametrize("name", ["stand_alone", "stem", "local_relation"])
def test_local_attention_is_its_equation(name):
    layer, x = made(LAYERS[name]), torch.randn(1, 8, 4, 5, dtype=torch.float64)
    found = layer(x)[0]
    expected = torch.stack([one_by_one(layer, x[0], channel) for channel in range(8)])
    if name == "local_relation":
        expected = layer.transform(expected)
    assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 16), (16, 8)])
def test_halo_attention_is_timms(size):
    own = made(lambda: HaloAttention(16, heads=2, block=4, halo=2))
    theirs = HaloAttn(16, num_heads=2, block_size=4, halo_size=2).double()
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    assert_close(own(x), theirs.eval()(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_halo_attention_of_another_size_is_that_of_the_padded_map_without_its_border():
    own = made(LAYERS["halo"])
    x = torch.randn(1, 8, 5, 7, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, [0, 1, 0, 1])
    assert_close(own(x), own(padded)[:, :, :5, :7], rtol=0, atol=1e-12)


@torch.no_grad()
def test_lambda_layer_is_timms():
    own, theirs = made(lambda: LambdaLayer(16, heads=2, keys=4, window=5)), TimmLambda(16, num_heads=2, dim_head=4, r=5)
    state = {key: x.unsqueeze(4) if x.dim() == 4 and "lambda" in key else x for key, x in own.state_dict().items()}
    theirs.double().load_state_dict(state)
    x = torch.randn(2, 16, 6, 7, dtype=torch.float64)
    assert_close(own(x), theirs.eval()(x), rtol=0, atol=1e-12)


def timms_name(key):
    """timm's blocks hold the two 1x1 convolutions and their norms together."""
    key = re.sub(r"^(layer\d\.\d\.)conv([13])\.weight", r"\1conv\2.conv.weight", key)
    return re.sub(r"^(layer\d\.\d\.)bn([13])\.", r"\1conv\2.bn.", key)


@pytest.mark.slow
@torch.no_grad()
def test_sknets_logits_are_timms():
    own, theirs = models.sknet50().double().eval(), create_model("skresnext50_32x4d").double().eval()
    state = {  # fresh norms and zeros would hide a branch
        key: torch.randn_like(x) * 0.05 if x.dim() == 1 and "running_var" not in key else x
        for key, x in own.state_dict().items()
    }
    own.load_state_dict(state)
    theirs.load_state_dict({timms_name(key): x for key, x in state.items()})
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_close(own(images), theirs(images), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_augmented_convolution_is_convolution_and_attention_side_by_side():
    layer, x = made(LAYERS["augmented"]), torch.randn(1, 8, 3, 4, dtype=torch.float64)
    maps, keys = layer.qkv(x)[0].flatten(1), layer.keys // 2  # (2 K + V, N)
    attended = []
    for head in range(2):
        query, key = (maps[start + head * keys :][:keys] for start in (0, layer.keys))
        value = maps[2 * layer.keys + head * layer.values // 2 :][: layer.values // 2]
        logits = torch.zeros(12, 12, dtype=torch.float64)
        for one in range(12):
            for other in range(12):
                row, column = other // 4 - one // 4, other % 4 - one % 4
                tables = resampled(layer.vertical, 3)[row + 2] + resampled(layer.horizontal, 4)[column + 3]
                logits[one, other] = query[:, one] @ (key[:, other] + tables) * keys**-0.5
        attended.append(value @ logits.softmax(1).t())
    attended = layer.mix(torch.cat(attended).view(1, -1, 3, 4))
    assert_close(layer(x), torch.cat([layer.conv(x), attended], 1), rtol=0, atol=1e-12)


def resampled(table, side):
    wanted = torch.nn.functional.interpolate(table.t()[None], size=2 * side - 1, mode="linear")
    return wanted[0].t()


@torch.no_grad()
def test_non_local_block_is_equation_6():
    layer, x = made(LAYERS["non_local"]), torch.randn(1, 8, 4, 6, dtype=torch.float64)
    query = layer.theta(x)[0].flatten(1)
    key, value = (torch.nn.functional.max_pool2d(part(x), 2)[0].flatten(1) for part in (layer.phi, layer.g))
    mixed = value @ (query.t() @ key).softmax(1).t()
    expected = x + layer.bn(layer.w(mixed.view(1, 4, 4, 6)))
    assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    layer = made(LAYERS[name])
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)
    layer(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: StandAloneAttention(20, heads=8),
            "cannot divide 20 channels among 16 halves of heads",
        ),
        (lambda: StandAloneAttention(16, kernel_size=4), "kernel_size 4 has no centre; give an odd one"),
        (lambda: LocalRelation(12, share=8), "cannot divide 12 channels among 8 channels that share their weights"),
        (lambda: HaloAttention(12, heads=8), "cannot divide 12 channels among 8 heads; give a divisor of 12"),
        (lambda: AugmentedConvolution(12, side=4), "cannot divide 12 channels among 8 heads; give a divisor of 12"),
        (lambda: LambdaLayer(10), "cannot divide 10 channels among 4 heads; give a divisor of 10"),
        (lambda: LambdaLayer(16, window=4), "window 4 has no centre; give an odd one"),
        (lambda: SelectiveKernel(48), "cannot divide 48 channels into 32 groups; give a divisor"),
    ],
)
def test_widths_that_do_not_fit(make, line):
    with pytest.raises(ValueError, match=line):
        make()


def test_operators_plug_into_other_networks():
    model = models.resnet_small(width=16)
    replaced = plug_in(model, lambda channels: StandAloneAttention(channels, kernel_size=3, heads=4))
    assert len(replaced) == 6
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("stand_alone50", 18.0), ("lr_net50", 23.4), ("aa_resnet50", 25.8), ("lambda_resnet50", 15.0), ("sknet50", 27.5)],
)
def test_sizes(name, millions):
    """Published: 18.0, 23.3, 25.8, 15.0 and 27.5 M."""
    with torch.device("meta"):
        model = getattr(models, name)()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


@torch.no_grad()
def test_non_local_blocks_take_maps_of_one_position():
    for size in ((1, 1), (1, 5), (4, 1)):
        layer = made(LAYERS["non_local"])
        assert layer(torch.randn(2, 8, *size, dtype=torch.float64)).isfinite().all()
    model = models.non_local50(stages=(3, 4), num_classes=3).eval()
    assert model(torch.randn(1, 3, 24, 24)).shape == (1, 3)


def test_an_extra_block():
    """BoTNet's study: a block is added to the last stage; a new non-local block changes nothing."""
    with torch.device("meta"):
        stages = models.botnet50(c5=[], added=1).layer4, models.botnet50().layer4
    kinds = [[type(block.conv2).__name__ for block in stage] for stage in stages]
    assert kinds == [[*["Conv2d"] * 3, "BoTAttention"], ["BoTAttention"] * 3]
    torch.manual_seed(0)
    model = models.non_local50(stages=[3, 4], num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    assert [type(model.layer3[5]), type(model.layer4[2])] == [NonLocalBlock] * 2
    with torch.no_grad():
        before = model(images)
        model.layer3[5], model.layer4[2] = torch.nn.Identity(), torch.nn.Identity()
        assert torch.equal(model(images), before)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "dilation"), [(LocalRelation, 1), (partial(StandAloneAttention, heads=2), 2)])
def test_a_graph_to_export_has_the_same_values(layer, dilation):
    """Whose neighbours come in rows, at any size."""
    torch.manual_seed(0)
    module = layer(16, kernel_size=5, dilation=dilation).double().eval()
    sizes = {0: Dim("batch", min=1), 2: Dim.AUTO, 3: Dim.AUTO}
    maps = torch.randn(2, 16, 8, 7, dtype=torch.float64)
    program = torch.export.export(module, (maps,), dynamic_shapes=(sizes,))
    assert sum("narrow" in str(node.target) for node in program.graph.nodes) == 10  # not 25 and more
    for x in (maps, torch.randn(1, 16, 5, 11, dtype=torch.float64)):
        torch.testing.assert_close(program.module()(x), module(x), rtol=1e-12, atol=1e-12)
