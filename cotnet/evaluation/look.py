"""Where a network looks at one image: Grad-CAM, the local kernels of CoT, the attention of BoTNet and PVT.

Forward hooks record what the modules compute, so nothing here repeats a model's code.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cotnet.errors import InputError
from cotnet.models.botnet import BoTAttention
from cotnet.models.contextual import CoTLayer
from cotnet.models.pvt import SpatialReductionAttention

STAGES: Final = 3  # the last stages whose kernels or attention are shown

Position = tuple[float, float]  # row and column as shares of height and width, from the top left corner
M = TypeVar("M", bound=nn.Module)


class NoFeatureMapError(InputError):
    """A network without a map that Grad-CAM could weight."""

    def __init__(self) -> None:
        super().__init__(
            "backbone: no feature map for Grad-CAM, its last layers give tokens instead of maps; look at a "
            "convolutional network, CoTNet, BoTNet or PVT"
        )


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a network does with one image. Maps are on the CPU; kernels and attention by their stage."""

    target: int  # the class that `heat` explains
    probability: float  # of that class
    heat: Tensor  # (H, W), at least 0
    position: Position
    kernels: dict[str, Tensor]  # (K, K, H, W): the share of each neighbour in each position's dynamic context
    dilation: int  # of the kernels
    attention: dict[str, Tensor]  # (H, W): what `position` attends to, mean over heads


@dataclass(frozen=True, kw_only=True)
class AttentionWeights:
    """What one attention layer computes for one image."""

    weights: Tensor  # (heads, queries, keys); a class token comes first
    size: tuple[int, int]  # of the map of queries
    key_size: tuple[int, int]

    def of(self, query: int) -> Tensor:
        """The weights of a query over the map of keys, mean over heads: (H, W). -1: the class token."""
        extra = self.weights.shape[2] - self.key_size[0] * self.key_size[1]
        return self.weights.mean(0)[query + extra, extra:].unflatten(0, self.key_size)


def look(model: nn.Module, images: Tensor, *, target: int | None = None, position: Position | None = None) -> Look:
    """What the network does with one normalised image (1, 3, S, S), in evaluation mode.

    target: the class that Grad-CAM explains, default the predicted one. position: whose kernels and attention are
    returned, default the maximum of Grad-CAM. Raises NoFeatureMapError.
    """
    with recorded_kernels(model) as kernels, recorded_attention(model) as layers:
        logits, heat = grad_cam(model, images, target=target)
    chosen = int(logits.argmax()) if target is None else target
    position = position or highest(heat)
    attention = {}
    for stage, layer in layers.items():
        if layer.weights.shape[1] > layer.size[0] * layer.size[1]:
            attention[f"{stage}, class token"] = layer.of(-1)
        row, column = cell(position, layer.size)
        attention[stage] = layer.of(row * layer.size[1] + column)
    cot = last_layers(model, CoTLayer)
    return Look(
        target=chosen,
        probability=float(logits.double().softmax(0)[chosen]),
        heat=heat.float().cpu(),
        position=position,
        kernels={stage: shares(raw, cot[stage].dilation).float().cpu() for stage, raw in kernels.items()},
        dilation=next((layer.dilation for layer in cot.values()), 1),
        attention={stage: weights.float().cpu() for stage, weights in attention.items()},
    )


def grad_cam(model: nn.Module, images: Tensor, *, target: int | None = None) -> tuple[Tensor, Tensor]:
    """The logits (classes,) of one image (1, 3, S, S), and how much each part of the last feature map speaks for a
    class, (H, W), at least 0.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks" (2017), equations 1 and 2. The last feature map
    is the last output (1, C, H, W) of any module that has more than one position; for PVT, which classifies
    its class token, it is the map that its last attention reads. target: default the predicted class. Raises
    NoFeatureMapError.
    """
    last: list[tuple[Tensor, Sequence[int]]] = []

    def keep(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, SpatialReductionAttention):
            last[:] = [(given[0], given[1])]
        elif isinstance(output, Tensor) and has_positions(output):
            last[:] = [(output, output.shape[2:])]

    watched: list[nn.Module] = []
    if hasattr(model, "cls_token"):
        watched += last_layers(model, SpatialReductionAttention).values()
    with ExitStack() as hooks, torch.enable_grad():
        for module in watched[-1:] or model.modules():
            hooks.enter_context(module.register_forward_hook(keep))
        logits = model(images)[0]
    if not last or len(last[0][1]) != 2 or last[0][1][0] != last[0][1][1]:  # tokens, or channels last
        raise NoFeatureMapError
    features, size = last[0]
    chosen = int(logits.argmax()) if target is None else target
    (gradient,) = torch.autograd.grad(logits[chosen], features)
    maps, gradients = (as_maps(values.detach(), size) for values in (features, gradient))
    alpha = gradients.mean((1, 2))  # equation 1
    return logits.detach(), torch.einsum("c,chw->hw", alpha, maps).relu()  # equation 2


def has_positions(output: Tensor) -> bool:
    """Whether an output is a map or tokens, of more than one position."""
    return (output.ndim == 3 and output.shape[1] > 1) or (output.ndim == 4 and output[0, 0].numel() > 1)


def as_maps(values: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (1, C, H, W), or tokens (1, N, C) of which the last H * W are a map's, as (C, H, W)."""
    height, width = size
    return values[0] if values.ndim == 4 else values[0, -height * width :].t().unflatten(1, (height, width))


@contextmanager
def recorded_kernels(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """By stage, the local kernels (kernels, K * K, H, W) of the last CoT layers, once one image has passed."""
    found: dict[str, Tensor] = {}

    def record(stage: str, layer: CoTLayer) -> Any:
        def keep(_module: nn.Module, _given: Any, output: Tensor) -> None:
            found[stage] = output.detach()[0].unflatten(0, (-1, layer.kernel_positions))

        return layer.embed[-1].register_forward_hook(keep)  # the last module of `CoTLayer.local_kernels`

    with ExitStack() as hooks:
        for stage, layer in last_layers(model, CoTLayer).items():
            if layer.fusion != "static":
                hooks.enter_context(record(stage, layer))
        yield found


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[dict[str, AttentionWeights]]:
    """By stage, the weights of the last attention layers of BoTNet or PVT, once one image has passed."""
    found: dict[str, AttentionWeights] = {}

    def record(stage: str, layer: nn.Module) -> Any:
        @torch.no_grad()
        def keep(module: nn.Module, given: tuple[Any, ...], _output: Tensor) -> None:
            assert isinstance(module, BoTAttention | SpatialReductionAttention)
            height, width = given[0].shape[2:] if isinstance(module, BoTAttention) else given[1]
            keys = module.key_size(given[1]) if isinstance(module, SpatialReductionAttention) else (height, width)
            weights = module.attention_weights(*given)[0]
            found[stage] = AttentionWeights(weights=weights, size=(height, width), key_size=keys)

        return layer.register_forward_hook(keep)

    with ExitStack() as hooks:
        for kind in (BoTAttention, SpatialReductionAttention):
            for stage, layer in last_layers(model, kind).items():
                hooks.enter_context(record(stage, layer))
        yield found


def last_layers(model: nn.Module, kind: type[M]) -> dict[str, M]:
    """The last layer of a kind in each of the last stages that have one; layer4.2.conv2 is in `stage 4`."""
    found: dict[str, M] = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            number = re.search(r"\d+", name)
            found[f"stage {number[0]}" if number else name] = module
    return dict([*found.items()][-STAGES:])


def shares(kernels: Tensor, dilation: int) -> Tensor:
    """The share of each neighbour in each position's dynamic context: (kernels, K * K, H, W) -> (K, K, H, W).

    The mean of the kernels' absolute weights, without neighbours beyond the border; sums to 1 over K * K.
    """
    side = round(kernels.shape[1] ** 0.5)
    ones = kernels.new_ones(1, 1, *kernels.shape[2:])
    inside = F.unfold(ones, side, dilation=dilation, padding=dilation * (side // 2)).view(kernels.shape[1:])
    strength = kernels.abs().mean(0) * inside
    return (strength / strength.sum(0).clamp(min=torch.finfo(strength.dtype).tiny)).unflatten(0, (side, side))


def mean_shifts(kernels: Tensor, dilation: int) -> Tensor:
    """Towards which neighbours each position listens: shares (K, K, H, W) -> (2, H, W), in cells down and right.

    The centre of mass of the shares, from that of an even kernel: the border alone shifts nothing.
    """
    even = shares(torch.ones_like(kernels).flatten(0, 1)[None], dilation)
    offsets = dilation * (torch.arange(len(kernels)) - len(kernels) // 2).to(kernels.dtype)
    down, right = (torch.einsum(f"{axis},ijhw->hw", offsets, kernels - even) for axis in "ij")
    return torch.stack([down, right])


def highest(heat: Tensor) -> Position:
    """The centre of the hottest cell of (H, W); the middle of the image where all are equally hot."""
    height, width = heat.shape
    if heat.min() == heat.max():
        return 0.5, 0.5
    row, column = divmod(int(heat.argmax()), width)
    return (row + 0.5) / height, (column + 0.5) / width


def cell(position: Position, size: Sequence[int]) -> tuple[int, int]:
    """Row and column of the cell of a map (H, W) that holds a position."""
    row, column = (min(int(share * side), side - 1) for share, side in zip(position, size, strict=True))
    return row, column
