"""The shifted sum against its definition by unfolding, and against the authors' kernel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from cotnet.ops import local_aggregation

GOLDEN = Path(__file__).parents[1] / "golden" / "local_aggregation.npz"


def definition(value, weight, dilation=1):
    """Unfold every neighbourhood, multiply, sum."""
    batch, channels, height, width = value.shape
    groups, taps = weight.shape[1:3]
    kernel = round(taps**0.5)
    patches = F.unfold(value, kernel, dilation=dilation, padding=dilation * (kernel // 2))
    patches = patches.reshape(batch, channels // groups, groups, taps, height, width)
    return (patches * weight.unsqueeze(1)).sum(3).reshape(value.shape)


def inputs(channels=8, groups=4, kernel=3, size=(6, 7), dtype=torch.float64):
    generator = torch.Generator().manual_seed(kernel * 100 + channels)
    value = torch.randn(2, channels, *size, dtype=torch.float64, generator=generator).to(dtype)
    weight = torch.randn(2, groups, kernel**2, *size, dtype=torch.float64, generator=generator).to(dtype)
    return value.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("size", [(6, 7), (1, 2)])
def test_equals_the_definition(kernel, dilation, groups, size):
    value, weight = inputs(groups=groups, kernel=kernel, size=size)
    ours, theirs = local_aggregation(value, weight, dilation=dilation), definition(value, weight, dilation)
    assert_close(ours, theirs, rtol=0, atol=1e-13)
    upstream = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, (value, weight), upstream)
    assert_close(gradients, torch.autograd.grad(theirs, (value, weight), upstream), rtol=0, atol=1e-13)


@pytest.mark.parametrize("prefix", ["", "h2_"])
def test_equals_the_authors_kernel(prefix):
    with np.load(GOLDEN) as data:
        value, weights, upstream, out, grad_v, grad_w = (
            torch.from_numpy(data[prefix + key]) for key in ("v", "w", "upstream", "out", "grad_v", "grad_w")
        )
    value.requires_grad_()
    weights.requires_grad_()
    ours = torch.cat([local_aggregation(value, weight) for weight in weights.unbind(1)], dim=1)
    assert_close(ours, out, rtol=0, atol=1e-13)
    assert_close(torch.autograd.grad(ours, (value, weights), upstream), (grad_v, grad_w), rtol=0, atol=1e-13)


def test_first_and_second_derivatives():
    value, weight = inputs(channels=4, groups=2, size=(3, 3))
    assert torch.autograd.gradcheck(local_aggregation, (value, weight))
    assert torch.autograd.gradgradcheck(local_aggregation, (value, weight))


def test_only_the_gradient_that_is_needed():
    value, weight = inputs()
    local_aggregation(value.detach(), weight).sum().backward()
    assert value.grad is None
    assert_close(weight.grad, torch.autograd.grad(definition(value, weight).sum(), weight)[0])


def test_half_precision_sums_in_float32():
    value, weight = inputs(channels=16, groups=2, kernel=7, size=(9, 9), dtype=torch.bfloat16)
    exact = definition(value.double(), weight.double())
    ours = local_aggregation(value, weight.float())  # autocast hands over float32 weights
    assert ours.dtype == torch.bfloat16
    assert_close(ours, exact.bfloat16(), rtol=2**-7, atol=1e-6)


def test_channels_last_stays():
    value, weight = inputs()
    last = value.detach().to(memory_format=torch.channels_last)
    ours = local_aggregation(last, weight)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_close(ours, definition(value, weight), rtol=0, atol=1e-13)


@pytest.mark.slow
def test_compiles_into_one_graph():
    compiled = torch.compile(local_aggregation, fullgraph=True, backend="aot_eager")
    for size in ((6, 7), (9, 5)):
        value, weight = inputs(size=size)
        ours, theirs = compiled(value, weight), definition(value, weight)
        upstream = torch.randn_like(ours)
        assert_close(ours, theirs, rtol=0, atol=1e-13)
        gradients = torch.autograd.grad(ours, (value, weight), upstream)
        assert_close(gradients, torch.autograd.grad(theirs, (value, weight), upstream), rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    value, weight = inputs()
    ours = torch.vmap(local_aggregation)(value.unsqueeze(1), weight.unsqueeze(1)).squeeze(1)
    assert_close(ours, definition(value, weight), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("value", "weight", "message"),
    [
        ((2, 8, 4, 4), (2, 4, 8, 4, 4), "8 taps"),
        ((2, 8, 4, 4), (2, 4, 4, 4, 4), "4 taps"),
        ((2, 8, 4, 4), (2, 3, 9, 4, 4), "3 weight groups"),
        ((2, 8, 4, 4), (2, 4, 9, 4, 5), "size differ"),
        ((2, 8, 4, 4), (1, 4, 9, 4, 4), "size differ"),
    ],
)
def test_wrong_shapes_are_refused(value, weight, message):
    with pytest.raises(ValueError, match=message):
        local_aggregation(torch.zeros(value), torch.zeros(weight))
