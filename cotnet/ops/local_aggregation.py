"""Local aggregation: a convolution whose K x K kernel is another one at every position.

Li et al., "Contextual Transformer Networks for Visual Recognition" (2021), equation 2: the local matrix multiplication
of the values with the contextual attention weights. Summed tap by tap over shifted views, so that no K * K times larger
unfolded copy of the values ever exists.
"""

import math
from collections.abc import Iterator
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
    kernel = math.isqrt(taps)
    if kernel * kernel != taps or kernel % 2 == 0:
        raise ValueError(f"weight has {taps} taps; give the square of an odd kernel size")
    if value.shape[1] % groups:
        raise ValueError(f"{value.shape[1]} channels cannot share {groups} weight groups; give a divisor")
    if weight.shape[0] != value.shape[0] or weight.shape[3:] != value.shape[2:]:
        raise ValueError(
            f"weight {tuple(weight.shape)} does not belong to value {tuple(value.shape)}: batch or size differ"
        )
    result: torch.Tensor = LocalAggregation.apply(value, weight.to(value.dtype), dilation)
    return result


class LocalAggregation(torch.autograd.Function):
    """The shifted sum with its gradients written as shifted sums: no scatter, nothing saved but the two inputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
        groups, height, width = weight.shape[1], *value.shape[2:]
        precision = torch.promote_types(value.dtype, torch.float32)
        result = torch.zeros_like(value, dtype=precision)
        total = result.unflatten(1, (-1, groups))  # (B, C / G, G, H, W): channel c = r * G + g
        padded = _pad(value.to(precision), weight, dilation).unflatten(1, (-1, groups))
        kernels = weight.to(precision).unsqueeze(1)  # (B, 1, G, K * K, H, W)
        for tap, top, left in _taps(weight.shape[2], dilation):
            total.addcmul_(padded[..., top : top + height, left : left + width], kernels[:, :, :, tap])
        return result.to(value.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, int], output: torch.Tensor) -> None:  # noqa: ARG004
        value, weight, ctx.dilation = inputs
        ctx.save_for_backward(value, weight)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        value, weight = ctx.saved_tensors
        needs_value, needs_weight, _ = ctx.needs_input_grad
        return (
            _value_gradient(upstream, weight, ctx.dilation) if needs_value else None,
            _weight_gradient(upstream, value, weight, ctx.dilation) if needs_weight else None,
            None,
        )


def _value_gradient(upstream: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """What position p gave to its neighbour p - offset comes back from there: the same sum with mirrored offsets."""
    groups, height, width = weight.shape[1], *upstream.shape[2:]
    precision = torch.promote_types(upstream.dtype, torch.float32)
    result = torch.zeros_like(upstream, dtype=precision)
    total = result.unflatten(1, (-1, groups))
    padded = _pad(upstream.to(precision), weight, dilation).unflatten(1, (-1, groups))
    kernels = _pad(weight.to(precision), weight, dilation).unsqueeze(1)
    last = weight.shape[2] - 1
    for tap, top, left in _taps(weight.shape[2], dilation):
        window = (..., slice(top, top + height), slice(left, left + width))
        total.addcmul_(padded[window], kernels[:, :, :, last - tap][window])
    return result.to(upstream.dtype)


def _weight_gradient(upstream: torch.Tensor, value: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    groups, height, width = weight.shape[1], *value.shape[2:]
    precision = torch.promote_types(value.dtype, torch.float32)
    padded = _pad(value.to(precision), weight, dilation).unflatten(1, (-1, groups))
    upstream = upstream.to(precision).unflatten(1, (-1, groups))
    taps = [
        (padded[..., top : top + height, left : left + width] * upstream).sum(1)  # (B, G, H, W)
        for _, top, left in _taps(weight.shape[2], dilation)
    ]
    return torch.stack(taps, dim=2).to(weight.dtype)


def _pad(maps: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    border = dilation * (math.isqrt(weight.shape[2]) // 2)
    return F.pad(maps, (border, border, border, border))


def _taps(taps: int, dilation: int) -> Iterator[tuple[int, int, int]]:
    """Yield (tap, top, left): where in the padded map the tap's window begins."""
    kernel = math.isqrt(taps)
    for tap in range(taps):
        yield tap, dilation * (tap // kernel), dilation * (tap % kernel)
