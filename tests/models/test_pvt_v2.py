"""PVTv2 against timm's with the same weights, and against the arithmetic of its table."""

import pytest
import timm
import torch
from reference import fill
from timm.models.pvt_v2 import checkpoint_filter_fn
from torch.export import Dim
from torch.nn import functional as F
from torch.testing import assert_close

from cotnet import models
from cotnet.errors import InputError
from cotnet.models.pvt_v2 import AveragePool, LinearReductionAttention, PVTv2Block
from cotnet.models.table import TABLE, build, count_multiply_adds, count_parameters
from cotnet.models.weights import load_weights

VARIANTS = [name for name in models.__all__ if name.startswith("pvt_v2")]
QUICK, LONG = ("pvt_v2_b0", "pvt_v2_b2_li"), [pytest.mark.slow, pytest.mark.long]
CASES = [("pvt_v2_b0", False), ("pvt_v2_b0", True)]
CASES += [pytest.param(name, False, marks=LONG) for name in VARIANTS[1:]]


def equal(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "linear"), CASES)
def test_logits_maps_and_gradients_are_timms(name, linear):
    """timm maps keys of the authors' files to its own: our keys are theirs."""
    settings = {"linear": True} if linear else {}
    ours = fill(getattr(models, name)(**settings).double())
    theirs = timm.create_model(name, **settings).double()
    theirs.load_state_dict(checkpoint_filter_fn(ours.state_dict(), theirs))
    for size in ((64, 64), (65, 97)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        logits, expected = ours(images), theirs(images)
        equal(logits, expected)
        with torch.no_grad():
            maps = theirs.forward_intermediates(images, intermediates_only=True)
            for mine, other in zip(ours.forward_stages(images), maps, strict=True):
                equal(mine, other)
    for output in (logits, expected):
        F.cross_entropy(output, torch.tensor([3, 871])).backward()
    gradients = checkpoint_filter_fn({key: p.grad for key, p in ours.named_parameters()}, theirs)
    largest = max(float(p.grad.norm()) for p in theirs.parameters())
    for key, parameter in theirs.named_parameters():
        assert (gradients[key] - parameter.grad).norm() <= 1e-9 * parameter.grad.norm() + 1e-14 * largest, key


def test_keys_are_the_authors():
    attention = ["q", "kv", "proj", "sr", "norm"]
    block = ["norm1", *(f"attn.{name}" for name in attention), "norm2", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2"]
    expected = []
    for stage in range(1, 5):
        expected += [f"patch_embed{stage}.proj", f"patch_embed{stage}.norm"]
        for index in range(2):
            layers = [name for name in block if stage < 4 or name not in ("attn.sr", "attn.norm")]
            expected += [f"block{stage}.{index}.{name}" for name in layers]
        expected.append(f"norm{stage}")
    with torch.device("meta"):
        plain, linear = models.pvt_v2_b0(), models.pvt_v2_b0(linear=True)
    keys = [f"{name}.{part}" for name in [*expected, "head"] for part in ("weight", "bias")]
    assert list(plain.state_dict()) == keys
    assert set(linear.state_dict()) - set(keys) == {
        f"block4.{index}.attn.{name}.{part}"
        for index in (0, 1)
        for name in ("sr", "norm")
        for part in ("weight", "bias")
    }


SHAPES = {  # depths and expansions; widths are twice B0's for all others
    "pvt_v2_b0": ((2, 2, 2, 2), (8, 8, 4, 4)),
    "pvt_v2_b1": ((2, 2, 2, 2), (8, 8, 4, 4)),
    "pvt_v2_b2": ((3, 4, 6, 3), (8, 8, 4, 4)),
    "pvt_v2_b2_li": ((3, 4, 6, 3), (8, 8, 4, 4)),
    "pvt_v2_b3": ((3, 4, 18, 3), (8, 8, 4, 4)),
    "pvt_v2_b4": ((3, 8, 27, 3), (8, 8, 4, 4)),
    "pvt_v2_b5": ((3, 6, 40, 3), (4, 4, 4, 4)),
}


def by_hand(name, side):
    """Parameters and multiply-adds, layer by layer."""
    depths, expansions = SHAPES[name]
    layers, products, before, side = [], 0, 3, side // 2  # layers: weights, biases, positions
    for stage, (depth, expansion) in enumerate(zip(depths, expansions, strict=True)):
        width, kernel, reduction = (
            (32, 64, 160, 256)[stage] * (1 + (name != "pvt_v2_b0")),
            (7, 3, 3, 3)[stage],
            8 >> stage,
        )
        side //= 2
        tokens, hidden, linear = side**2, expansion * width, name == "pvt_v2_b2_li"
        keys = 49 if linear else (side // reduction) ** 2
        block = [(width, width, 0)] * 2 + [(width**2, width, tokens)] * 2 + [(2 * width**2, 2 * width, keys)]
        block += [(width * hidden, hidden, tokens), (9 * hidden, hidden, tokens), (hidden * width, width, tokens)]
        if linear or reduction > 1:
            block += [((1 if linear else reduction**2) * width**2, width, keys), (width, width, 0)]
        layers += [(kernel**2 * before * width, width, tokens), *[(width, width, 0)] * 2, *block * depth]
        products += depth * 2 * tokens * keys * width
        before = width
    layers.append((1000 * before, 1000, 1))
    parameters = sum(weights + biases for weights, biases, _ in layers)
    return parameters, products + sum(weights * positions for weights, _, positions in layers)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=LONG) for name in VARIANTS])
def test_counts_are_those_of_the_layers(name):
    """Pooling is not counted, as for all models, though it is a matrix product here."""
    model = build(name, 224)
    assert (count_parameters(model), count_multiply_adds(model, 224)) == by_hand(name, 224)


def test_counts_are_the_published_ones():
    """To their last digit; B5's multiply-adds alone are 11.72, published as 11.8."""
    different = set()
    for name in VARIANTS:
        parameters, multiply_adds = by_hand(name, 224)
        published = TABLE[name, 224]
        if f"{parameters / 1e6:.1f}" != f"{published.parameters:.1f}":
            different.add((name, "parameters"))
        if f"{multiply_adds / 1e9:.1f}" != f"{published.multiply_adds:.1f}":
            different.add((name, "multiply-adds"))
    assert different == {("pvt_v2_b5", "multiply-adds")}


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (13, 8), (56, 40)])
def test_average_pool_is_torchs(size):
    maps = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    pooled = AveragePool(7)(maps.flatten(2).transpose(1, 2), size)
    expected = F.adaptive_avg_pool2d(maps, 7).flatten(2).transpose(1, 2)
    assert_close(pooled, expected, rtol=1e-12, atol=1e-14)
    given = torch.randn_like(expected)
    gradients = [torch.autograd.grad(output, maps, given)[0] for output in (pooled, expected)]
    assert_close(*gradients, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("linear", [False, True])
def test_gradients_of_a_block(linear):
    torch.manual_seed(0)
    block = PVTv2Block(4, 2, reduction=2, expansion=1, linear=linear, drop_path=0.0).double()
    tokens = torch.randn(1, 15, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def run(tokens, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(block, given, (tokens, (3, 5)))

    assert torch.autograd.gradcheck(run, (tokens, *parameters), fast_mode=True)


def test_linear_attention_has_49_keys_at_any_size():
    layer = LinearReductionAttention(8, 2)
    for size in ((1, 1), (5, 9), (20, 16)):
        tokens = torch.randn(1, size[0] * size[1], 8)
        weights = layer.attention_weights(tokens, size)
        assert weights.shape == (1, 2, tokens.shape[1], 49)
        value = layer.project(tokens, size)[2]
        assert_close(layer.proj((weights @ value).transpose(1, 2).flatten(2)), layer(tokens, size))
        assert layer.key_size(size) == (7, 7)


@pytest.mark.slow
@pytest.mark.long
def test_linear_attention_exports_for_any_batch_and_size():
    model = fill(models.pvt_v2_b0(linear=True)).eval()
    dynamic = {0: Dim("batch"), 2: Dim("height", min=64), 3: Dim("width", min=64)}
    program = torch.export.export(model, (torch.randn(2, 3, 96, 64),), dynamic_shapes=(dynamic,)).module()
    for shape in ((3, 3, 65, 97), (1, 3, 224, 128)):
        images = torch.randn(shape)
        assert_close(program(images), model(images), rtol=1e-4, atol=1e-4)


def test_release_file_loads_strictly(tmp_path):
    """The release's training writes the weights beside others; its published files are bare."""
    source, model = fill(models.pvt_v2_b0(linear=True)), models.pvt_v2_b0(linear=True)
    for content in (source.state_dict(), {"model": source.state_dict(), "epoch": 299, "scaler": {"scale": 1.0}}):
        torch.save(content, tmp_path / "file.pth")
        load_weights(model, tmp_path / "file.pth")
        assert_close(dict(model.state_dict()), dict(source.state_dict()), rtol=0, atol=0)
    with pytest.raises(InputError, match="177 of another shape"):
        load_weights(models.pvt_v2_b1(), tmp_path / "file.pth")
