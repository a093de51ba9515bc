"""Local aggregation on the GPU: the Triton kernels as operators that autograd and torch.compile know.

Tensors keep their memory format, contiguous or channels last; sums are in float32 (float64 for float64). Shapes and
meaning as in `cotnet.ops.local_aggregation`; differentiable once.
"""

from typing import Any, Final

import torch
import triton
import triton.language as tl

from cotnet.ops import local_aggregation_kernels as kernels

THREADS: Final = 128
REGISTERS: Final = 72  # per thread, for weights or the sums of their gradient


def tile_sizes(
    positions: int, groups: int, kernel_positions: int, item_size: int, *, last: bool, shared: int
) -> tuple[int, int]:
    """Positions and groups of a program's tile, powers of two.

    Contiguous: one value per thread, so that a warp reads neighbours at any shift. Channels last: up to 16 bytes of
    neighbouring groups per thread, as long as `shared` tensors of K * K kernel positions fit its registers.
    """
    if not last:
        tile_groups = min(2, groups)
        return THREADS // tile_groups, tile_groups
    vector = max(1, min(16 // item_size, REGISTERS // (shared * kernel_positions)))
    vector = 1 << (vector.bit_length() - 1)
    tile_groups = min(triton.next_power_of_2(groups), THREADS * vector)
    return min(THREADS * vector // tile_groups, triton.next_power_of_2(positions)), tile_groups


def _launch(
    value: torch.Tensor, weight: torch.Tensor, dilation: int, others: list[torch.Tensor], shared: int
) -> tuple[int, dict[str, Any]]:
    """The number of programs, of THREADS threads each, and a kernel's compile-time constants."""
    batch, groups, kernel_positions, height, width = weight.shape
    last = value.stride(1) == 1 and _position(value) != 1
    positions, item_size = height * width, value.element_size()
    tile, tile_groups = tile_sizes(positions, groups, kernel_positions, item_size, last=last, shared=shared)
    extents = [  # the offset of a sample's last element from its first
        sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
        for x in (value, weight, *others)
    ]
    return batch * triton.cdiv(positions, tile) * triton.cdiv(groups, tile_groups), {
        "GROUPS": groups,
        "KERNEL": int(kernel_positions**0.5 + 0.5),
        "DILATION": dilation,
        "WIDE": max(extents) >= 2**31,
        "LAST": last,
        "TILE": tile,
        "TILE_GROUPS": tile_groups,
        "SUM": tl.float64 if value.dtype == torch.float64 else tl.float32,
        "num_warps": THREADS // 32,
    }


def _position(x: torch.Tensor) -> int:
    """The distance between neighbouring positions."""
    return x.stride(-1) if x.shape[-1] > 1 else x.stride(-2)


def _even(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its positions are evenly spaced, else a copy."""
    height, width = x.shape[-2:]
    return x if 1 in (height, width) or x.stride(-2) == width * x.stride(-1) else x.contiguous()


def _strides(*tensors: torch.Tensor) -> list[tuple[int, ...]]:
    return [(*x.stride()[:-2], _position(x)) for x in tensors]


@torch.library.custom_op("cotnet::local_aggregation", mutates_args=())
def aggregate(value: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """The aggregated values, of value's dtype and memory format; weight has the same dtype."""
    value, weight = _even(value), _even(weight)
    result = torch.empty_like(value)
    if not result.numel():
        return result
    programs, constants = _launch(value, weight, dilation, [result], shared=1)
    rows = value.shape[1] // weight.shape[1]
    with torch.cuda.device_of(value):
        kernels.sums[(programs,)](
            value, weight, result, *value.shape[2:], rows, *_strides(value, weight, result), **constants
        )
    return result


@torch.library.custom_op("cotnet::local_aggregation_backward", mutates_args=())
def differentiate(  # noqa: PLR0917
    upstream: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor,
    dilation: int,
    need_value: bool,  # noqa: FBT001
    need_weight: bool,  # noqa: FBT001
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of value and weight; an empty tensor for one that is not needed."""
    upstream, value, weight = _even(upstream), _even(value), _even(weight)
    results = _gradients_like(upstream, value, weight, dilation, need_value, need_weight)
    if not value.numel():
        return results
    like = (results[0] if need_value else value, results[1] if need_weight else weight)
    shared = int(need_value) + int(need_weight)
    programs, constants = _launch(value, weight, dilation, [upstream, *like], shared=max(shared, 1))
    rows = value.shape[1] // weight.shape[1]
    with torch.cuda.device_of(value):
        strides = _strides(upstream, value, weight, *like)
        constants |= {"NEED_VALUE": need_value, "NEED_WEIGHT": need_weight}
        kernels.gradients[(programs,)](upstream, value, weight, *results, *value.shape[2:], rows, *strides, **constants)
    return results


@aggregate.register_fake
def _aggregate_fake(value: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:  # noqa: ARG001
    return torch.empty_like(_even(value))


@differentiate.register_fake
def _gradients_like(  # noqa: PLR0917
    upstream: torch.Tensor,  # noqa: ARG001
    value: torch.Tensor,
    weight: torch.Tensor,
    dilation: int,  # noqa: ARG001
    need_value: bool,  # noqa: FBT001
    need_weight: bool,  # noqa: FBT001
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty_like(_even(value)) if need_value else value.new_empty(0),
        torch.empty_like(_even(weight)) if need_weight else weight.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG001
    value, weight, ctx.dilation = inputs
    ctx.save_for_backward(value, weight)


def _backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    gradients = differentiate(upstream, *ctx.saved_tensors, ctx.dilation, *needs)
    return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), None


aggregate.register_autograd(_backward, setup_context=_save)
