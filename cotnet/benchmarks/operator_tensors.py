"""The tensors of local aggregation, in the layouts in memory that a CoT block hands over."""

from typing import Final, NamedTuple

import torch

from cotnet.models.contextual import CHANNELS_PER_KERNEL

FORMATS: Final = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Of value and weight on a GPU. A compiled model in channels_last hands over weights whose groups are neighbours, an
# eager one contiguous weights, which torch's GroupNorm returns there.
LAYOUTS: Final = {
    "contiguous": ("contiguous",),
    "channels_last": ("channels_last", "channels_last, contiguous weights"),
}


class Tensors(NamedTuple):
    """Value and weight as a CoT block's convolutions leave them, and the gradient of the result."""

    value: torch.Tensor
    weight: torch.Tensor
    upstream: torch.Tensor


def make_tensors(
    stage: str, batch: int, layout: str, dtype: torch.dtype, device: torch.device, *, kernel_size: int = 3
) -> Tensors:
    """Noise of the shapes of a stage, "CHANNELSxPIXELS", in one of LAYOUTS' layouts; on a CPU, whose GroupNorm keeps
    the format, one of FORMATS."""
    channels, pixels = map(int, stage.split("x"))
    groups, kernel_positions = channels // CHANNELS_PER_KERNEL, kernel_size**2
    name, _, contiguous_weights = layout.partition(", ")

    def noise(planes: int, memory_format: torch.memory_format) -> torch.Tensor:
        maps = torch.randn(batch, planes, pixels, pixels, dtype=dtype, device=device)
        return maps.contiguous(memory_format=memory_format)

    weight = noise(groups * kernel_positions, FORMATS["contiguous" if contiguous_weights else name])
    if name == "contiguous" or contiguous_weights or device.type == "cpu":
        weight = weight.unflatten(1, (groups, kernel_positions))
    else:
        weight = weight.unflatten(1, (kernel_positions, groups)).transpose(1, 2)
    value, upstream = noise(channels, FORMATS[name]), noise(channels, FORMATS[name])
    return Tensors(value.requires_grad_(), weight.requires_grad_(), upstream)
