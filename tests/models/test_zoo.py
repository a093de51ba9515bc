"""Every backbone does what every backbone must do."""

import copy
import io
import math

import pytest
import torch
from nets import build
from torch.export import Dim
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.ops import StochasticDepth

from cotnet import models
from cotnet.config.build import check, settings_of_target
from cotnet.config.compose import compose
from cotnet.errors import InputError
from cotnet.models.layers import BlurPool, DropPath

ZOO = [name for name in models.__all__ if not name.endswith("_model")]
QUICK = ("cotnet_small", "pvt_tiny")
FAMILIES = (
    "cotnet_small",
    "cotnext50_2x48d",
    "se_cotnetd_50",
    "botnet50",
    "pvt_tiny",
    "pvt_v2_b0",
    "resnet50",
    "resnest50",
)


def slow_but(quick, names, long=()):
    slow = {name: [pytest.mark.slow, pytest.mark.long][: 1 + (name in long)] for name in names}
    return [name if name in quick else pytest.param(name, marks=slow[name]) for name in names]


def long_but(quick, names):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_configuration_matches_the_constructor(name):
    node = compose("train", [f"backbone={name}", "data.root=x", "data.image_size=32"])["backbone"]
    assert (node.pop("weights"), node.pop("ema"), node.pop("head")) == (None, True, "keep")
    assert node.pop("_target_") == f"cotnet.models.{name}"
    constructor = getattr(models, name)
    taken, required, others = settings_of_target(constructor)
    assert (required, others) == (set(), None)
    assert set(node) == set(taken) - {"in_channels"}
    with torch.device("meta"):
        assert constructor(**node).stage_channels


@pytest.mark.parametrize("name", slow_but(QUICK, ZOO, long=set(ZOO) - {"botnet50", "pvt_v2_b0", "resnet50"}))
def test_trains_and_evaluates(name):
    model = build(name, in_channels=2, drop_path=0.1, dropout=0.1)
    for size, layout, half in (((64, 64), torch.contiguous_format, False), ((65, 97), torch.channels_last, True)):
        model.zero_grad()
        images = torch.randn(2, 2, *size).to(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            F.cross_entropy(model.train()(images), torch.tensor([0, 4])).backward()
        assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    odd = torch.randn(2, 2, 65, 97)
    model.eval()
    with torch.no_grad():
        logits = model(odd)
        assert logits.shape == (2, 5)
        assert_close(logits[:1], model(odd[:1]), rtol=1e-3, atol=1e-4)  # no image sees another
        maps = model.forward_stages(odd)
        round_size = (
            math.floor if name in ("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large", "stand_alone50") else math.ceil
        )
        for stage, channels, stride in zip(maps, model.stage_channels, model.stage_strides, strict=True):
            assert stage.shape == (2, channels, round_size(65 / stride), round_size(97 / stride))
        channels_last = model.to(memory_format=torch.channels_last)(odd.to(memory_format=torch.channels_last))
        assert_close(channels_last, logits, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(odd)
        assert (half - logits).norm() < 0.1 * (logits.norm() + 1)


@pytest.mark.parametrize("name", slow_but(QUICK, ZOO, long=set(ZOO) - set(FAMILIES)))
def test_copies_pickles_and_takes_another_head(name):
    model = build(name).eval()
    images = torch.randn(1, 3, 64, 64)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    unpickled = torch.load(file, weights_only=False)
    with torch.no_grad():
        logits, maps = model(images), model.forward_stages(images)
        assert_close(copy.deepcopy(model)(images), logits, rtol=0, atol=0)
        assert_close(unpickled(images), logits, rtol=0, atol=0)
        model.reset_classifier(11)
        assert model(images).shape == (1, 11)
        assert_close(model.forward_stages(images), maps, rtol=0, atol=0)


@pytest.mark.parametrize("name", slow_but(("cotnet_small", "pvt_tiny"), FAMILIES))
@pytest.mark.parametrize("side", [1, 17, 28, 33])
def test_small_images(name, side):
    model = build(name).eval()
    assert model(torch.randn(2, 3, side, side)).shape == (2, 5)


def test_an_image_too_small_for_blur_pooling_is_one_line():
    with pytest.raises(InputError, match=r"takes maps of 2 x 2 px or more, not 1 x 3; use larger images"):
        BlurPool(4, 2)(torch.zeros(1, 4, 1, 3))
    assert BlurPool(4, 2)(torch.ones(1, 4, 2, 3)).unique().tolist() == [1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", long_but((), ("cotnet_small", "botnet50", "pvt_tiny", "pvt_v2_b0", "resnet50", "resnest50"))
)
def test_compiles_into_one_graph(name):
    model, twin = build(name).double(), build(name).double()
    torch.compiler.reset()  # the limit of recompilations counts all models of a process
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for replica in (model, compiled):
        F.cross_entropy(replica(images), torch.tensor([0, 4])).backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-6 * ours.grad.norm() + 1e-9
    assert_close(compiled.eval()(images), model.eval()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", long_but((), FAMILIES))
def test_exports_for_any_batch_and_size(name):
    model = build(name).eval()
    dynamic = {0: Dim("batch"), 2: Dim("height", min=64), 3: Dim("width", min=64)}
    program = torch.export.export(model, (torch.randn(2, 3, 96, 64),), dynamic_shapes=(dynamic,)).module()
    for shape in ((3, 3, 65, 97), (1, 3, 224, 128)):
        images = torch.randn(shape)
        assert_close(program(images), model(images), rtol=1e-4, atol=1e-4)


def test_drop_path_grows_with_depth_and_dropout_is_before_the_head():
    for name in ("cotnet50", "pvt_tiny", "pvt_v2_b2"):
        with torch.device("meta"):
            model = getattr(models, name)(drop_path=0.3, dropout=0.2)
        rates = [module.probability for key, module in model.named_modules() if key.endswith("drop_path")]
        assert rates == pytest.approx([0.3 * i / (len(rates) - 1) for i in range(len(rates))])
        assert model.dropout.p == 0.2


def test_drop_path_is_torchvisions():
    """The same images and gradients; values rounded once instead of twice, so equal where products are exact."""
    shortcut, x = torch.rand(64, 3, 2, 2), torch.rand(64, 3, 2, 2, requires_grad=True)
    for probability in (0.0, 0.3, 0.5, 1.0):
        torch.manual_seed(0)
        ours = DropPath(probability)(shortcut, x * 1)
        torch.manual_seed(0)
        theirs = shortcut + StochasticDepth(probability, "row")(x)
        assert_close(ours, theirs, rtol=2**-22 if probability == 0.3 else 0, atol=0)
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)))
        assert torch.equal(DropPath(probability).eval()(shortcut, x * 1), shortcut + x)


def test_ablation_settings():
    with torch.device("meta"):
        static = models.cotnet50(fusion="static", stages=(4,), kernel_size=5, dilation=2)
        keys = [key for key in static.state_dict() if ".conv2." in key and key.endswith("weight")]
        assert {key.split(".")[0] for key in keys if "key_embed" in key} == {"layer4"}
        assert not any("embed.3" in key or ".se." in key for key in keys)
        key_embed = static.layer4[0].conv2.key_embed[0]
        assert (key_embed.kernel_size, key_embed.dilation) == ((5, 5), (2, 2))
        linear, attention = models.cotnet50(fusion="linear"), models.cotnet50()
        dynamic = models.cotnet50(fusion="dynamic")
        assert (
            set(linear.state_dict())
            == set(dynamic.state_dict())
            == {k for k in attention.state_dict() if ".se." not in k}
        )
        plain = models.cotnet50(stages=())
        assert plain.state_dict().keys() == models.resnet50().state_dict().keys()
        mixed = models.se_cotnetd_50(stages=(2, 4), alternate=(4,))
        cots = [key for key, module in mixed.named_modules() if type(module).__name__ == "CoTLayer"]
        assert cots == [f"layer2.{i}.conv2" for i in range(4)] + ["layer4.0.conv2", "layer4.2.conv2"]


def test_small_twins_differ_in_the_operator_alone():
    """Equal in all but the operator; one size narrower, the plain twin has the parameters of CoT."""
    twins = {"cot": models.cotnet_small(num_classes=10), "plain": models.resnet_small(num_classes=10)}
    shapes = {
        name: {k: v.shape for k, v in twin.state_dict().items() if "conv2" not in k and "bn2" not in k}
        for name, twin in twins.items()
    }
    assert shapes["cot"] == shapes["plain"]
    assert twins["plain"].stage_strides == twins["cot"].stage_strides == (2, 4, 8, 8)
    assert not any(block.bn3.weight.any() for twin in twins.values() for block in (twin.layer1[0], twin.layer4[0]))
    twins["narrow"] = models.resnet_small(num_classes=10, width=15)
    twins["static"] = models.cotnet_small(num_classes=10, fusion="static")
    counts = {name: sum(p.numel() for p in twin.parameters()) for name, twin in twins.items()}
    assert counts == {"cot": 533_928, "plain": 597_786, "narrow": 526_075, "static": 416_346}


def test_fusions_by_definition():
    torch.manual_seed(0)
    layer = models.contextual.CoTLayer(32).eval()
    x = torch.randn(2, 32, 6, 5)
    static = layer.key_embed(x)
    dynamic = layer.attend(x, static)
    for fusion, expected in (("static", static), ("dynamic", dynamic), ("linear", static + dynamic)):
        other = models.contextual.CoTLayer(32, fusion=fusion).eval()
        other.load_state_dict({key: value for key, value in layer.state_dict().items() if key in other.state_dict()})
        assert_close(other(x), expected, rtol=0, atol=0)
    gates = layer.se((static + dynamic).mean((2, 3), keepdim=True)).reshape(2, 32, 2).softmax(2)
    expected = dynamic * gates[:, :, :1, None] + static * gates[:, :, 1:, None]
    assert_close(layer(x), expected)


def test_large_maps_in_half_precision_stay_finite():
    layer = models.contextual.CoTLayer(16).eval()
    maps = 200 * torch.ones(1, 16, 200, 200)  # their sum is far beyond float16
    exact, half = layer(maps), layer.half()(maps.half())
    assert exact.abs().max() > 1
    assert (half.float() - exact).abs().max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 60}, "60 channels"),
        ({"channels": 24, "groups": 2}, "24 channels"),
        ({"channels": 64, "kernel_size": 4}, "kernel_size 4"),
        ({"channels": 64, "fusion": "none"}, "unknown fusion"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        models.contextual.CoTLayer(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [0, 1]}, "stages=[0,1] must be a list of 1, 2, 3 or 4, such as [1]"),
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"drop_path": 1.5}, "drop_path=1.5 must be from 0 to 1"),
        ({"dropout": -1}, "dropout=-1 must be from 0 to 1"),
        ({"kernel_size": 0}, "kernel_size=0 must be at least 1"),
        ({"fusion": "sum"}, "fusion=sum is unknown; valid: attention, dynamic, linear, static"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(InputError) as caught:
        check({"_target_": "cotnet.models.cotnet50", **change}, "backbone", ())
    assert str(caught.value) == f"backbone.{message}"


@pytest.mark.slow
def test_initialisation_as_published():
    """Convolutions of variance 2 / fan-out, last norms zero; PVT: normal of 0.02; BoT: of 0.01, tables of d^-1/2.

    PVTv2 has both, and counts only a group's own outputs.
    """
    torch.manual_seed(0)
    cotnet, resnet = models.cotnet50(), models.resnet50()
    for model, last in ((cotnet, 0.0), (resnet, 1.0)):
        for key, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 5000:
                fan_out = module.out_channels * module.kernel_size[0] ** 2  # torch's, which leaves groups out
                assert_moments(module.weight, math.sqrt(2 / fan_out), kurtosis=3.0)
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.weight.unique().tolist() == [last if key.endswith("bn3") else 1.0]
                assert module.bias.unique().tolist() == [0.0]
    pvt = models.pvt_tiny()
    for weight in (pvt.pos_embed1, pvt.block1[0].attn.q.weight, pvt.block3[1].mlp.fc1.weight, pvt.head.weight):
        assert_moments(weight, 0.02, kurtosis=3.0)
    assert pvt.block2[0].attn.kv.bias.unique().tolist() == [0.0]
    second = models.pvt_v2_b2_li()
    for layer, fan_out in ((second.patch_embed1.proj, 49 * 64), (second.block3[1].attn.sr, 320)):
        assert_moments(layer.weight, math.sqrt(2 / fan_out), kurtosis=3.0)
    assert_moments(second.block2[0].mlp.dwconv.dwconv.weight, math.sqrt(2 / 9), kurtosis=3.0)
    for weight in (second.block4[0].attn.kv.weight, second.block3[1].mlp.fc2.weight, second.head.weight):
        assert_moments(weight, 0.02, kurtosis=3.0)
    biases = [p for name, p in second.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)
    bot = models.botnet50()
    attention = bot.layer4[1].conv2
    assert_moments(attention.query.weight, 0.01, kurtosis=3.0)
    assert_moments(attention.vertical, 128**-0.5, kurtosis=3.0, tolerance=0.1)
    assert bot.layer4[1].bn3.weight.unique().tolist() == [0.0]


def assert_moments(weight, std, *, kurtosis, tolerance=0.05):
    weight = weight.detach().double()
    assert abs(weight.mean()) < 4 * std / math.sqrt(weight.numel())
    assert weight.std().item() == pytest.approx(std, rel=tolerance)
    assert (weight**4).mean().item() / std**4 == pytest.approx(kurtosis, rel=5 * tolerance)
