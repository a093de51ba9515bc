"""Local aggregation on the GPU: the Triton kernels as operators that autograd and torch.compile know.

Tensors keep their memory format, contiguous or channels last; sums are in float32 (float64 for float64). Shapes and
meaning as in `cotnet.ops.local_aggregation`; differentiable once. Triton compiles a kernel in a second or two, and
keeps it on disk: in channels last one for each number of channels, else one for each size of the maps, too.
"""

from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl

from cotnet.ops import local_aggregation_kernels as kernels

THREADS: Final = 128
ROWS: Final = 8  # of channels that a launch sums; CoT has 8 for each weight
REGISTERS: Final = 64  # of a thread, for the sums of ROWS rows, and in the backward pass their upstream gradients


class Launch(NamedTuple):
    """A kernel, its number of programs, and its arguments by name with the compile-time constants."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]

    def run(self) -> None:
        """Start the kernel on the current device."""
        self.kernel[(self.programs,)](**self.arguments)


def vector_size(groups: int, item_size: int, *, last: bool, maps: int) -> int:
    """Neighbouring elements that a thread owns, a power of two.

    Contiguous: one, so that a warp reads neighbours at any shift. Channels last: up to 16 bytes of neighbouring
    groups, as long as `maps` values for each row fit the registers.
    """
    return min(16 // item_size, REGISTERS // (ROWS * maps), groups & -groups) if last else 1


def forward_launches(value: torch.Tensor, weight: torch.Tensor, result: torch.Tensor, dilation: int) -> list[Launch]:
    """What writes the result, ROWS rows of channels at a time."""
    taps = _taps(weight)
    rows = zip(_rows(value, taps), _rows(result, taps), strict=True)
    return [_launch(kernels.sums, {"VALUE": x, "WEIGHT": taps, "RESULT": y}, dilation, maps=1) for x, y in rows]


def backward_launches(
    upstream: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor,
    results: tuple[torch.Tensor, torch.Tensor],
    *,
    dilation: int,
) -> list[Launch]:
    """What writes the gradients of value and weight (where they are not empty), ROWS rows of channels at a time.

    Each launch writes the whole gradient of the weights: its rows' share.
    """
    needs = {"NEED_VALUE": results[0].numel() > 0, "NEED_WEIGHT": results[1].numel() > 0}
    to_value, to_weight = (x if x.numel() else like for x, like in zip(results, (value, weight), strict=True))
    shared = {"WEIGHT": _taps(weight), "ADDED": _taps(to_weight)}
    rows = zip(*(_rows(x, shared["WEIGHT"]) for x in (upstream, value, to_value)), strict=True)
    return [
        _launch(kernels.gradients, {"UPSTREAM": up, "VALUE": x, "RESULT": y, **shared}, dilation, maps=2, **needs)
        for up, x, y in rows
    ]


def _launch(kernel: Any, tensors: dict[str, torch.Tensor], dilation: int, *, maps: int, **needs: bool) -> Launch:
    """For the tensors of `_rows` and `_taps` by the names that the kernel gives their strides."""
    value, kernel_positions = tensors["VALUE"], tensors["WEIGHT"].shape[2]
    batch, parts, rows, groups, height, width = value.shape
    last = value.stride(3) == 1 and _position(value) != 1
    block = THREADS * vector_size(groups, value.element_size(), last=last, maps=maps)
    furthest = max(  # the offset of a part's last element from its first
        sum((size - 1) * stride for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True))
        for x in tensors.values()
    )
    arguments: dict[str, Any] = {name.lower(): x for name, x in tensors.items()}
    arguments |= {f"{name.lower()}_strides": x.stride()[:2] for name, x in tensors.items()}
    strides = {name: (*x.stride()[2:4], _position(x)) for name, x in tensors.items()}
    for name in strides.keys() & {"WEIGHT", "ADDED"}:
        *planes, position = strides[name]
        # Contiguous beside maps in channels last, the distances of planes grow with the maps. K = 7 would spill.
        free = last and position == 1 and kernel_positions <= 25
        strides[name] = (*(planes if free else map(tl.constexpr, planes)), tl.constexpr(position))
    sides = (height, width) if last else (tl.constexpr(height), tl.constexpr(width))
    arguments |= strides | {"HEIGHT": sides[0], "WIDTH": sides[1], "PARTS": parts, "ROWS": rows, "GROUPS": groups}
    arguments |= {"KERNEL": round(kernel_positions**0.5), "DILATION": dilation, "LAST": last, "BLOCK": block}
    arguments |= {"WIDE": furthest >= 2**31 - block, "num_warps": THREADS // 32}
    arguments["SUM"] = tl.float64 if value.dtype == torch.float64 else tl.float32
    return Launch(kernel, batch * parts * triton.cdiv(groups * height * width, block), arguments | needs)


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(B, [parts,] G, K * K, H, W) as (B, parts, K * K, G, H, W)."""
    return (weight if weight.ndim == 6 else weight.unsqueeze(1)).transpose(2, 3)


def _rows(x: torch.Tensor, taps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(B, C, H, W) as (B, parts, rows, G, H, W) with at most ROWS rows each."""
    return x.unflatten(1, (taps.shape[1], -1, taps.shape[3])).split(ROWS, 2)


def _position(x: torch.Tensor) -> int:
    """The distance between neighbouring positions."""
    return x.stride(-1) if x.shape[-1] > 1 else x.stride(-2)


def _even(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its positions are evenly spaced, else a copy."""
    height, width = x.shape[-2:]
    return x if 1 in (height, width) or x.stride(-2) == width * x.stride(-1) else x.contiguous()


@torch.library.custom_op("cotnet::local_aggregation", mutates_args=())
def aggregate(value: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """The aggregated values, of value's dtype and memory format; weight has the same dtype."""
    value, weight = _even(value), _even(weight)
    result = torch.empty_like(value)
    if result.numel():
        with torch.cuda.device_of(value):
            for launch in forward_launches(value, weight, result, dilation):
                launch.run()
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
    to_value, to_weight = _gradients_like(upstream, value, weight, dilation, need_value, need_weight)
    if not value.numel():
        return to_value, to_weight
    several = value.shape[1] > ROWS * weight.shape[1:-3].numel()  # then each launch sums a share in full precision
    share = to_weight.to(torch.promote_types(value.dtype, torch.float32)) if several else to_weight
    total = torch.zeros_like(share) if several else share
    results = to_value, share
    with torch.cuda.device_of(value):
        for launch in backward_launches(upstream, value, weight, results, dilation=dilation):
            launch.run()
            if several:
                total += share
    return to_value, total.to(weight.dtype)


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
