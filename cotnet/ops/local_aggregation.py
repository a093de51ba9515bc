"""Local aggregation: a convolution whose K x K kernel is another one at every position.

Li et al., "Contextual Transformer Networks for Visual Recognition" (2021), section 3: the local matrix multiplication
of the values with the contextual attention weights. Summed tap by tap over shifted views, so that no K * K times larger
unfolded copy of the values ever exists.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F


def local_aggregation(value: torch.Tensor, weight: torch.Tensor, *, dilation: int = 1) -> torch.Tensor:
    """Sum the K x K neighbourhood of every position with the weights of that position; zeros outside the border.

    value (B, C, H, W), weight (B, G, K * K, H, W) with G a divisor of C and K odd; returns (B, C, H, W) of value's
    dtype. Channel c uses weight group c % G; tap i * K + j looks at (y + dilation * (i - K // 2), x + dilation * (j -
    K // 2)). The weights are cast to the values' dtype; sums are taken in float32 at least. Raises ValueError on
    other shapes.
    """
    groups, taps = weight.shape[1:3]
    kernel = int(taps**0.5 + 0.5)
    if kernel * kernel != taps or kernel % 2 == 0:
        raise ValueError(f"weight has {taps} taps; give the square of an odd kernel size")
    if value.shape[1] % groups:
        raise ValueError(f"{value.shape[1]} channels cannot share {groups} weight groups; give a divisor")
    if weight.shape[0] != value.shape[0] or weight.shape[3:] != value.shape[2:]:
        raise ValueError(
            f"weight {tuple(weight.shape)} does not belong to value {tuple(value.shape)}: batch or size differ"
        )
    result: torch.Tensor = LocalAggregation.apply(value, weight.to(value.dtype), kernel, dilation)
    return result


class LocalAggregation(torch.autograd.Function):
    """The shifted sum with its gradients written as shifted sums: no scatter, nothing saved but the two inputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: torch.Tensor, weight: torch.Tensor, kernel: int, dilation: int) -> torch.Tensor:
        groups, border = weight.shape[1], dilation * (kernel // 2)
        value_, weight_ = _at_least_float32(value), _at_least_float32(weight)
        result = torch.zeros_like(value_)
        total = result.unflatten(1, (-1, groups))  # (B, C / G, G, H, W): channel c = r * G + g
        padded = _pad(value_, border).unflatten(1, (-1, groups))
        kernels = weight_.unsqueeze(1)  # (B, 1, G, K * K, H, W)
        for tap, window in enumerate(_windows(value.shape, kernel, dilation)):
            total.addcmul_(padded[window], kernels[:, :, :, tap])
        return result.to(value.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG004
        value, weight, ctx.kernel, ctx.dilation = inputs
        ctx.save_for_backward(value, weight)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, weight = ctx.saved_tensors
        shape = (ctx.kernel, ctx.dilation)
        return (
            _value_gradient(upstream, weight, *shape) if ctx.needs_input_grad[0] else None,
            _weight_gradient(upstream, value, weight, *shape) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def _value_gradient(upstream: torch.Tensor, weight: torch.Tensor, kernel: int, dilation: int) -> torch.Tensor:
    """What a position gave to a neighbour comes back from there: the same sum, the offsets mirrored."""
    groups, border = weight.shape[1], dilation * (kernel // 2)
    upstream_, weight_ = _at_least_float32(upstream), _at_least_float32(weight)
    result = torch.zeros_like(upstream_)
    total = result.unflatten(1, (-1, groups))
    padded = _pad(upstream_, border).unflatten(1, (-1, groups))
    kernels = _pad(weight_, border).unsqueeze(1)
    for tap, window in enumerate(_windows(upstream.shape, kernel, dilation)):
        total.addcmul_(padded[window], kernels[:, :, :, kernel**2 - 1 - tap][window])
    return result.to(upstream.dtype)


def _weight_gradient(
    upstream: torch.Tensor, value: torch.Tensor, weight: torch.Tensor, kernel: int, dilation: int
) -> torch.Tensor:
    groups, border = weight.shape[1], dilation * (kernel // 2)
    padded = _pad(_at_least_float32(value), border).unflatten(1, (-1, groups))
    upstream = _at_least_float32(upstream).unflatten(1, (-1, groups))
    windows = _windows(value.shape, kernel, dilation)
    taps = [(padded[window] * upstream).sum(1) for window in windows]  # (B, G, H, W) each
    return torch.stack(taps, dim=2).to(weight.dtype)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pad(maps: torch.Tensor, border: int) -> torch.Tensor:
    return F.pad(maps, (border, border, border, border))


def _windows(shape: Sequence[int], kernel: int, dilation: int) -> Iterator[tuple[Any, ...]]:
    """The part of a padded map that each tap sees, in the order of the taps."""
    height, width = shape[2:]
    for i in range(kernel):
        for j in range(kernel):
            top, left = dilation * i, dilation * j
            yield (..., slice(top, top + height), slice(left, left + width))
