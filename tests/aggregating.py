"""Inputs of the operator, and its comparison with the definition."""

import pytest
import torch
from torch.testing import assert_close

from cotnet.benchmarks.local_aggregation import unfold_form
from cotnet.ops.local_aggregation_triton import aggregate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
formats = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])


def triton(value, weight, *, dilation=1):
    return aggregate(value, weight, dilation)


def inputs(batch=2, channels=8, groups=4, kernel=3, size=(6, 7), dtype=torch.float64, last=False, device="cpu"):
    """Value, weight and upstream gradient as convolutions leave them."""
    generator = torch.Generator().manual_seed(kernel * 100 + channels)
    layout = torch.channels_last if last else torch.contiguous_format

    def noise(planes):
        maps = torch.randn(batch, planes, *size, dtype=torch.float64, generator=generator)
        return maps.to(device, dtype).contiguous(memory_format=layout)

    weight = noise(groups * kernel**2).unflatten(1, (groups, kernel**2))
    return noise(channels).requires_grad_(), weight.requires_grad_(), noise(channels)


def check(form, value, weight, upstream, dilation=1):
    """Values, gradients, dtypes and memory formats; the definition in float64."""
    exact = [x.detach().double().cpu().contiguous().requires_grad_() for x in (value, weight)]
    theirs = unfold_form(*exact, dilation=dilation)
    expected = (theirs, *torch.autograd.grad(theirs, exact, upstream.double().cpu()))
    ours = form(value, weight, dilation=dilation)
    found = (ours, *torch.autograd.grad(ours, (value, weight), upstream))
    tolerance = TOLERANCE[value.dtype]
    for ours, theirs, like in zip(found, expected, (value, value, weight), strict=True):
        assert (ours.dtype, ours.stride()) == (like.dtype, like.stride())
        scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
        assert_close(ours.double().cpu(), theirs, rtol=0, atol=scale * tolerance)
    return found


CASES = [
    {},
    {"size": (1, 1)},
    {"size": (1, 5), "kernel": 5},
    {"size": (5, 1)},
    {"batch": 0},
    {"batch": 1, "groups": 8, "kernel": 1},
    {"groups": 1, "kernel": 5},
    {"batch": 1, "channels": 24, "groups": 3, "kernel": 5, "size": (7, 9)},
    {"batch": 1, "channels": 4, "kernel": 7, "size": (9, 8)},
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(f"{key}={case[key]}" for key in case))
