"""Operators that torch does not have. Local aggregation: a convolution with its own K x K kernel at every position.

Li et al., "Contextual Transformer Networks for Visual Recognition" (2021), section 3: the local matrix multiplication
of the values with the contextual attention weights. No implementation here unfolds the values, which would take K * K
times their memory.
"""

import warnings
from importlib.util import find_spec
from typing import Final

import torch
from torch._C._functorch import peek_interpreter_stack

from cotnet.ops.local_aggregation_torch import LocalAggregation, aggregate_differentiably, aggregate_rows, neighbours
from cotnet.ops.toolchain import missing_for_kernels

__all__ = ["local_aggregation", "neighbours"]
with warnings.catch_warnings():  # of a driver that torch cannot use: cotnet.engine.gpus says it in a line
    warnings.filterwarnings("ignore", message="CUDA initialization")
    GPU: Final = torch.cuda.is_available()
# On a GPU only: importing triton takes half a second.
TRITON: Final = GPU and find_spec("triton") is not None and not missing_for_kernels()
if TRITON:
    from cotnet.ops.local_aggregation_triton import aggregate


def local_aggregation(value: torch.Tensor, weight: torch.Tensor, *, dilation: int = 1) -> torch.Tensor:
    """Sum the K x K neighbourhood of every position, weighted by that position's kernel; zeros beyond the border.

    value (B, C, H, W), weight (B, G, K * K, H, W) with G a divisor of C and K odd; returns (B, C, H, W) of value's
    dtype and memory format. Channel c uses weight group c % G. Kernel position i * K + j weights the pixel at
    (y + dilation * (i - K // 2), x + dilation * (j - K // 2)). The weights are cast to the values' dtype; sums are in
    float32 or more. Up to rounding it is

        patches = F.unfold(value, K, dilation=dilation, padding=dilation * (K // 2))
        patches = patches.reshape(B, C // G, G, K * K, H, W)
        return (patches * weight.unsqueeze(1)).sum(3).reshape(value.shape)

    A weight (B, P, G, K * K, H, W) treats P equal parts of the channels as samples of their own, as the groups of a
    convolution do: channel c of a part uses weight group c % G of the same part.

    CUDA tensors take the Triton kernels, differentiable once; other tensors, or all where triton, a C compiler or
    Python's headers are missing (see `TRITON`), take the PyTorch forms. Within transforms of torch.func (vmap, jvp),
    and for K > 3 in graphs to export, it is plain tensor operations. Else only value and weight are saved for the
    backward pass. A value that is not finite may spread further within its sample than in the definition. Raises
    ValueError on other shapes.
    """
    _check(value, weight, dilation)
    weight = weight.to(value.dtype)
    by_torch_func = not torch.compiler.is_compiling() and peek_interpreter_stack() is not None
    if TRITON and value.is_cuda and not by_torch_func:
        return aggregate(value, weight, dilation)
    form = aggregate_differentiably if by_torch_func else LocalAggregation.apply
    if torch.compiler.is_exporting() and weight.shape[-3] > 9:
        form = aggregate_rows
    if weight.ndim == 5:
        return form(value, weight, dilation)
    parts = value.unflatten(1, (weight.shape[1], -1))  # (B, P, C / P, H, W)
    result = form(parts.flatten(0, 1), weight.flatten(0, 1), dilation)
    return result.unflatten(0, parts.shape[:2]).flatten(1, 2)


def _check(value: torch.Tensor, weight: torch.Tensor, dilation: int) -> None:
    groups, kernel_positions = weight.shape[1:-3].numel(), weight.shape[-3]
    kernel = int(kernel_positions**0.5 + 0.5)
    if kernel * kernel != kernel_positions or kernel % 2 == 0:
        raise ValueError(f"weight has {kernel_positions} kernel positions; give the square of an odd kernel size")
    if value.shape[1] % groups:
        raise ValueError(f"{value.shape[1]} channels cannot share {groups} weight groups; give a divisor")
    if weight.shape[0] != value.shape[0] or weight.shape[-2:] != value.shape[2:] or weight.device != value.device:
        raise ValueError(
            f"weight {tuple(weight.shape)} on {weight.device} does not belong to value {tuple(value.shape)} on "
            f"{value.device}: batch, size or device differ"
        )
    if dilation < 1:
        raise ValueError(f"dilation {dilation} must be positive")
