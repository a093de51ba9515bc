"""Every form of the operator against its definition by unfolding, and against the authors' kernel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from aggregating import DEVICE, TOLERANCE, cases, check, formats, inputs, triton
from torch.testing import assert_close

from cotnet.benchmarks.local_aggregation import unfold_form
from cotnet.ops import local_aggregation, local_aggregation_torch
from cotnet.ops.local_aggregation_torch import Expressions
from cotnet.ops.local_aggregation_triton import differentiate

GOLDEN = Path(__file__).parents[1] / "golden" / "local_aggregation.npz"


@cases
@formats
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_definition(case, last, dilation, dtype):
    check(local_aggregation, *inputs(**case, last=last, dtype=dtype), dilation)


@formats
@pytest.mark.parametrize(("samples", "cached"), [(1, 600), (2, 700), (3, 10**6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_some_samples_at_a_time(dtype, samples, cached, last, monkeypatch):
    """As many as the cache holds, or a share of the batch; the last ones twice."""
    monkeypatch.setattr(local_aggregation_torch, "CACHED", cached)
    case = inputs(batch=13 if dtype is torch.float64 else 25, last=last, dtype=dtype)
    assert local_aggregation_torch.Strips(*case[:2], 1).samples == samples
    check(local_aggregation, *case)
    check(local_aggregation, *case, dilation=2)


@formats
def test_what_is_not_finite_stays_in_its_image(last):
    value, weight, upstream = inputs(batch=13, last=last)
    with torch.no_grad():
        value[3, 2, 5, 0], weight[8, 1, 4, 0, 6] = float("inf"), float("nan")
    y = local_aggregation(value, weight)
    for x in (y, *torch.autograd.grad(y, (value, weight), upstream)):
        broken = {image for image in range(13) if not x[image].isfinite().all()}
        assert broken <= {3, 8}
    assert not y[3].isfinite().all()
    assert not y[8].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("form", [local_aggregation, triton])
def test_maps_that_are_not_dense(form):
    """Views and mixed memory formats."""
    value, weight, upstream = (
        x.detach() for x in inputs(1, 4, 2, 3, (2, 3), device=DEVICE if form is triton else "cpu")
    )
    leaves = value.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = form(*leaves)
    gradients = torch.autograd.grad(expected, leaves, upstream)
    views = {
        "channels": (torch.cat([value, value], 1)[:, :4], weight),
        "columns": (torch.cat([value, value], 3)[..., :3], torch.cat([weight, weight], 4)[..., :3]),
        "turned": (value.mT.contiguous().mT, weight.mT.contiguous().mT),
        "mixed": (value.contiguous(memory_format=torch.channels_last), weight),
        "kernel positions first": (value, weight.transpose(1, 2).contiguous().transpose(1, 2)),
    }
    for name, view in views.items():
        pair = tuple(x.detach().requires_grad_() for x in view)
        result = form(*pair)
        assert_close(result, expected, rtol=0, atol=1e-13, msg=name)
        for back in (upstream, upstream.mT.contiguous().mT, upstream.contiguous(memory_format=torch.channels_last)):
            assert_close(torch.autograd.grad(result, pair, back, retain_graph=True), gradients, rtol=0, atol=1e-13)
    ones = torch.autograd.grad(form(*leaves).sum(), leaves)  # comes back expanded, without memory of its own
    assert_close(ones, torch.autograd.grad(form(*leaves), leaves, torch.ones_like(value)), rtol=0, atol=1e-13)


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


@pytest.mark.slow
@formats
def test_first_and_second_derivatives(last):
    value, weight, _ = inputs(channels=4, groups=2, size=(3, 3), last=last)
    assert torch.autograd.gradcheck(local_aggregation, (value, weight))
    assert torch.autograd.gradgradcheck(local_aggregation, (value, weight))


@pytest.mark.parametrize("form", [local_aggregation, triton])
def test_only_the_gradient_that_is_needed(form):
    value, weight, _ = inputs(batch=1)
    expected = torch.autograd.grad(unfold_form(value, weight).sum(), (value, weight))
    for x, others in ((value, (value, weight.detach())), (weight, (value.detach(), weight))):
        form(*others).sum().backward()
        assert_close(x.grad, expected[0 if x is value else 1], rtol=0, atol=1e-13)
    assert [x.numel() for x in differentiate(value.detach(), value, weight, 1, False, True)] == [0, weight.numel()]


def test_half_precision_sums_in_float32():
    value, weight, _ = inputs(channels=16, groups=2, kernel=7, size=(9, 9), dtype=torch.bfloat16)
    exact = unfold_form(value.double(), weight.double())
    ours = local_aggregation(value, weight.float())  # autocast hands over float32 weights
    assert ours.dtype == torch.bfloat16
    assert_close(ours, exact.bfloat16(), rtol=2**-7, atol=1e-6)


@formats
def test_expressions_equal_the_definition(last):
    """What is compiled, run as it stands."""
    for dtype in (torch.float64, torch.bfloat16):
        value, weight, upstream = inputs(last=last, dtype=dtype)
        form = Expressions(value, weight, 2)
        exact = [x.detach().double().requires_grad_() for x in (value, weight)]
        theirs = unfold_form(*exact, dilation=2)
        expected = (theirs, *torch.autograd.grad(theirs, exact, upstream.double()))
        found = (form.forward(), form.value_gradient(upstream), form.weight_gradient(upstream))
        for ours, theirs, like in zip(found, expected, (value, value, weight), strict=True):
            assert (ours.dtype, ours.stride()) == (like.dtype, like.stride())
            assert_close(ours.double(), theirs, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.slow
@formats
@pytest.mark.parametrize("form", [local_aggregation, triton])
def test_compiles_into_one_graph(form, last):
    compiled = torch.compile(form, fullgraph=True, backend="aot_eager")
    for size in ((6, 7), (9, 5)):
        check(compiled, *inputs(size=size, last=last, device=DEVICE if form is triton else "cpu"))


@pytest.mark.slow
@formats
def test_exports_with_any_batch(last):
    class Block(torch.nn.Module):
        def forward(self, value, weight):
            return local_aggregation(value, weight)

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Block(), inputs(last=last)[:2], dynamic_shapes=(batch, batch)).module()
    value, weight, _ = inputs(batch=5, last=last)
    assert_close(program(value, weight), unfold_form(value, weight), rtol=0, atol=1e-13)


@formats
@pytest.mark.parametrize("form", [local_aggregation, triton])
@pytest.mark.parametrize("order", ["groups before taps", "taps before groups"])
def test_parts_are_samples_of_their_own(form, last, order):
    """Weights (B, P, G, K * K, H, W), as CoTNeXt has them, in two orders in memory."""
    value, weight, upstream = inputs(channels=12, groups=6, last=last, device=DEVICE if form is triton else "cpu")
    weight = weight.detach().unflatten(1, (2, 3))
    if order == "taps before groups":
        weight = weight.transpose(2, 3).contiguous(memory_format=torch.contiguous_format).transpose(2, 3)
    weight.requires_grad_()
    halves = zip(value.chunk(2, 1), weight.unbind(1), strict=True)
    expected = torch.cat([unfold_form(*half) for half in halves], 1)
    gradients = torch.autograd.grad(expected, (value, weight), upstream)
    result = form(value, weight)
    assert_close(result, expected, rtol=0, atol=1e-13)
    for ours, theirs, like in zip(
        torch.autograd.grad(result, (value, weight), upstream), gradients, (value, weight), strict=True
    ):
        assert ours.stride() == like.stride() or form is local_aggregation
        assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("value", "weight", "dilation", "message"),
    [
        ((2, 8, 4, 4), (2, 4, 8, 4, 4), 1, "8 kernel positions"),
        ((2, 8, 4, 4), (2, 4, 4, 4, 4), 1, "4 kernel positions"),
        ((2, 8, 4, 4), (2, 3, 9, 4, 4), 1, "3 weight groups"),
        ((2, 8, 4, 4), (2, 4, 9, 4, 5), 1, "batch, size or device differ"),
        ((2, 8, 4, 4), (1, 4, 9, 4, 4), 1, "batch, size or device differ"),
        ((2, 8, 4, 4), (2, 4, 9, 4, 4), 0, "dilation 0"),
        ((2, 8, 4, 4), (2, 3, 4, 9, 4, 4), 1, "12 weight groups"),
    ],
)
def test_wrong_shapes_are_refused(value, weight, dilation, message):
    with pytest.raises(ValueError, match=message):
        local_aggregation(torch.zeros(value), torch.zeros(weight), dilation=dilation)
