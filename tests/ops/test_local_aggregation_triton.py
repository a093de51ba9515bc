"""The operator's Triton kernels: on the GPU, and in Triton's interpreter without one."""

import pytest
import torch
from aggregating import DEVICE, cases, check, formats, inputs, triton

from cotnet.ops import local_aggregation
from cotnet.ops.local_aggregation_triton import aggregate, vector_size


@pytest.mark.slow
@cases
@formats
def test_triton_equals_the_definition(case, last):
    check(triton, *inputs(**case, last=last, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@formats
def test_triton_sums_in_float32(dtype, last):
    case = inputs(batch=1, channels=6, groups=3, size=(3, 5), last=last, dtype=dtype, device=DEVICE)
    check(triton, *case, dilation=2)


@formats
def test_triton_derivatives(last):
    value, weight, _ = inputs(batch=1, channels=2, groups=1, size=(2, 3), last=last, device=DEVICE)
    assert torch.autograd.gradcheck(triton, (value, weight), fast_mode=True)


@pytest.mark.slow
def test_triton_operator_is_well_defined():
    """Schema, fake tensors and autograd agree with what runs."""
    for last in (False, True):
        case = inputs(batch=1, channels=4, groups=2, size=(2, 3), last=last, device=DEVICE)
        torch.library.opcheck(aggregate, (*case[:2], 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@formats
def test_triton_sums_many_rows_in_several_launches(last, dtype):
    case = inputs(batch=1, channels=2 * 19, groups=2, size=(2, 3), last=last, dtype=dtype, device=DEVICE)
    check(triton, *case)


def test_threads_own_a_power_of_two():
    for groups in (1, 3, 8, 12, 64, 3000):
        for item_size, maps in ((2, 1), (4, 2), (8, 1), (2, 2)):
            size = vector_size(groups, item_size, last=True, maps=maps)
            assert size & (size - 1) == 0
            assert groups % size == 0
            assert size * item_size <= 16
            assert vector_size(groups, item_size, last=False, maps=maps) == 1
    assert vector_size(8, 2, last=True, maps=1) == 8  # 8 bfloat16, 16 bytes
    assert vector_size(64, 2, last=True, maps=2) == 4
    assert vector_size(6, 4, last=True, maps=1) == 2


@pytest.mark.gpu
@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stage", [(64, 8, 56), (128, 16, 28), (512, 64, 7), (24, 3, 57)])
def test_on_the_gpu(stage, dtype, last):
    """The public function: values, the same bits twice, and compiled into one graph."""
    torch.compiler.reset()  # each case compiles anew; more than eight would count as too many recompilations
    channels, groups, pixels = stage
    case = inputs(4, channels, groups, 3, (pixels, pixels), dtype, last, "cuda")
    for found, again in zip(check(local_aggregation, *case), check(local_aggregation, *case), strict=True):
        assert torch.equal(found, again)
    check(torch.compile(local_aggregation, fullgraph=True), *case)
    with torch.autocast("cuda", torch.bfloat16):
        assert local_aggregation(case[0].bfloat16(), case[1].float()).dtype == torch.bfloat16


@pytest.mark.gpu
def test_beyond_32_bits_on_the_gpu():
    """A sample of more than 2^31 elements; 1 GiB of weights, 4 + 4 of values."""
    value = torch.randn(1, 4, 23200, 23200, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(1, 1, 1, 23200, 23200, device="cuda", dtype=torch.bfloat16)
    result = local_aggregation(value, weight)
    assert torch.equal(result[:, 3, -1], value[:, 3, -1] * weight[:, 0, 0, -1])
