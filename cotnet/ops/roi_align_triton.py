"""RoIAlign on the GPU with a gradient of the same bits every time: the Triton kernel as an operator of autograd.

torchvision's kernel adds the shares of boxes as they come. Its form for deterministic algorithms visits every pixel of
the map for every bin, where samples are as many as a bin has pixels. Boxes and meaning as in `cotnet.ops.roi_align`.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import torchvision  # noqa: F401 - registers its operators
import triton

from cotnet.ops.roi_align_kernels import add_boxes

TILE: Final = 8  # height and width of what a program writes
CHANNELS: Final = 32  # of a program, at most


@torch.library.custom_op("cotnet::roi_align", mutates_args=())
def pool(features: torch.Tensor, rois: torch.Tensor, side: int, scale: float) -> torch.Tensor:
    """torchvision's RoIAlign, aligned and with as many samples as a bin has pixels; the gradient is ours."""
    return torch.ops.torchvision.roi_align(features, rois, scale, side, side, -1, aligned=True)


@torch.library.custom_op("cotnet::roi_align_backward", mutates_args=())
def differentiate(upstream: torch.Tensor, rois: torch.Tensor, shape: Sequence[int], scale: float) -> torch.Tensor:
    """The gradient of features of this shape (B, C, H, W), float32 in channels_last."""
    batch, depth, height, width = shape
    result = _gradient_like(upstream, rois, shape, scale)
    images = torch.arange(batch + 1, device=rois.device, dtype=rois.dtype)
    arguments: dict[str, Any] = {
        "UPSTREAM": upstream.contiguous(memory_format=torch.channels_last),
        "ROIS": rois.contiguous(),
        "FIRST": torch.searchsorted(rois[:, 0].contiguous(), images),
        "RESULT": result,
        "scale": scale,
        "DEPTH": depth,
        "HEIGHT": height,
        "WIDTH": width,
        "SIDE": upstream.shape[-1],
        "TILE": TILE,
        "CHANNELS": min(CHANNELS, triton.next_power_of_2(depth)),
    }
    tiles = triton.cdiv(height, TILE) * triton.cdiv(width, TILE)
    if result.numel():
        with torch.cuda.device_of(result):
            add_boxes[tiles, triton.cdiv(depth, arguments["CHANNELS"]), batch](**arguments)
    return result


@pool.register_fake
def _pooled_like(features: torch.Tensor, rois: torch.Tensor, side: int, scale: float) -> torch.Tensor:  # noqa: ARG001
    return features.new_empty(len(rois), features.shape[1], side, side)


@differentiate.register_fake
def _gradient_like(
    upstream: torch.Tensor,
    rois: torch.Tensor,  # noqa: ARG001
    shape: Sequence[int],
    scale: float,  # noqa: ARG001
) -> torch.Tensor:
    return upstream.new_empty(*shape).contiguous(memory_format=torch.channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG001
    features, rois, _, ctx.scale = inputs
    ctx.shape = features.shape
    ctx.save_for_backward(rois)


def _backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return differentiate(upstream, *ctx.saved_tensors, list(ctx.shape), ctx.scale), None, None, None


pool.register_autograd(_backward, setup_context=_save)
