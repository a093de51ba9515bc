"""The model zoo as a table: parameters and multiply-adds, counted now, beside the published figures."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cotnet import models
from cotnet.models.contextual import CoTLayer
from cotnet.models.local_attention import LocalRelation, StandAloneAttention, StandAloneStem
from cotnet.models.pvt_v2 import AveragePool


@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures of a source: parameters in millions, multiply-adds in billions, accuracies in percent; None: none.

    `crop_ratio`: the evaluation's crop as a share of the resized shorter side."""

    source: str
    parameters: float | None = None
    multiply_adds: float | None = None
    top1: float | None = None
    top5: float | None = None
    crop_ratio: float = 0.875


COTNET = "Li et al. 2021, 350 epochs"
PVT = "Wang et al. 2021"
PVT_V2 = "Wang et al. 2022 ³"
STAND_ALONE = "Ramachandran et al. 2019 ⁴"
AA_RESNET = "Bello et al. 2019 ⁴"
BOTNET = "Srinivas et al. 2021 ¹"
TORCHVISION = "torchvision, V1 weights"

# (name, side in pixels) -> what was published for it
TABLE: dict[tuple[str, int], Published | None] = {
    ("cotnet50", 224): Published(source=COTNET, parameters=22.2, multiply_adds=3.3, top1=81.3, top5=95.6),
    ("cotnet101", 224): Published(source=COTNET, parameters=38.3, multiply_adds=6.1, top1=82.8, top5=96.2),
    ("cotnext50_2x48d", 224): Published(source=COTNET, parameters=30.1, multiply_adds=4.3, top1=82.1, top5=95.9),
    ("cotnext101_2x48d", 224): Published(source=COTNET, parameters=53.4, multiply_adds=8.2, top1=83.2, top5=96.4),
    ("se_cotnetd_50", 224): Published(source=COTNET, parameters=23.1, multiply_adds=4.1, top1=81.6, top5=95.8),
    ("se_cotnetd_101", 224): Published(source=COTNET, parameters=40.9, multiply_adds=8.5, top1=83.2, top5=96.5),
    ("se_cotnetd_152", 224): None,
    ("se_cotnetd_152", 256): Published(
        source=COTNET, parameters=55.8, multiply_adds=17.0, top1=84.0, top5=97.0, crop_ratio=0.888
    ),
    ("se_cotnetd_152", 320): Published(
        source=COTNET, parameters=55.8, multiply_adds=26.5, top1=84.6, top5=97.1, crop_ratio=0.909
    ),
    ("cotnet_small", 32): None,
    ("resnet_small", 32): None,
    ("operator_small", 32): None,
    ("botnet50", 224): None,
    ("botnet101", 224): None,
    ("botnet152", 224): None,
    ("botnet200", 224): None,
    ("botnet_s1_50", 224): None,
    ("botnet_s1_59", 224): Published(source=BOTNET, parameters=33.5, top1=81.7),
    ("botnet_s1_110", 224): Published(source=BOTNET, parameters=54.7, top1=82.8),
    ("botnet_s1_128", 256): Published(source=BOTNET, parameters=75.1, top1=83.5),
    ("botnet_s1_77", 320): Published(source=BOTNET, parameters=53.9, top1=84.0),
    ("botnet_s1_128", 384): Published(source=BOTNET, parameters=75.1, top1=84.7),
    ("pvt_tiny", 224): Published(source=PVT, parameters=13.2, multiply_adds=1.9, top1=75.1),
    ("pvt_small", 224): Published(source=PVT, parameters=24.5, multiply_adds=3.8, top1=79.8),
    ("pvt_medium", 224): Published(source=PVT, parameters=44.2, multiply_adds=6.7, top1=81.2),
    ("pvt_large", 224): Published(source=PVT, parameters=61.4, multiply_adds=9.8, top1=81.7),
    ("pvt_v2_b0", 224): Published(source=PVT_V2, parameters=3.7, multiply_adds=0.6, top1=70.5),
    ("pvt_v2_b1", 224): Published(source=PVT_V2, parameters=14.0, multiply_adds=2.1, top1=78.7),
    ("pvt_v2_b2", 224): Published(source=PVT_V2, parameters=25.4, multiply_adds=4.0, top1=82.0),
    ("pvt_v2_b2_li", 224): Published(source=PVT_V2, parameters=22.6, multiply_adds=3.9, top1=82.1),
    ("pvt_v2_b3", 224): Published(source=PVT_V2, parameters=45.2, multiply_adds=6.9, top1=83.1),
    ("pvt_v2_b4", 224): Published(source=PVT_V2, parameters=62.6, multiply_adds=10.1, top1=83.6),
    ("pvt_v2_b5", 224): Published(source=PVT_V2, parameters=82.0, multiply_adds=11.8, top1=83.8),
    ("resnet50", 224): Published(source=TORCHVISION, parameters=25.6, multiply_adds=4.1, top1=76.1, top5=92.9),
    ("resnet50_blurpool", 256): Published(source="FFCV, 88 epochs ²", top1=78.4, top5=94.1),
    ("resnet101", 224): Published(source=TORCHVISION, parameters=44.5, multiply_adds=7.8, top1=77.4, top5=93.5),
    ("resnet152", 224): Published(source=TORCHVISION, parameters=60.2, multiply_adds=11.5, top1=78.3, top5=94.0),
    ("resnext50_32x4d", 224): Published(source=TORCHVISION, parameters=25.0, multiply_adds=4.2, top1=77.6, top5=93.7),
    ("resnext101_32x4d", 224): None,
    ("resnet50d", 224): Published(source="He et al. 2019, table 5 ¹", top1=77.2, top5=93.5),
    ("resnet101d", 224): None,
    ("seresnet50", 224): Published(source="Hu et al. 2018, table 2 ¹", top1=76.7, top5=93.4),
    ("seresnet101", 224): Published(source="Hu et al. 2018, table 2 ¹", top1=77.6, top5=93.9),
    ("seresnet50d", 224): None,
    ("sknet50", 224): Published(source="Li et al. 2019 ⁴", parameters=27.5, multiply_adds=4.5, top1=79.2),
    ("stand_alone50", 224): Published(source=STAND_ALONE, parameters=18.0, multiply_adds=3.6, top1=77.6),
    ("lr_net50", 224): Published(source="Hu et al. 2019 ⁴", parameters=23.3, multiply_adds=4.3, top1=77.3, top5=93.6),
    ("halonet50", 224): None,
    ("aa_resnet50", 224): Published(source=AA_RESNET, parameters=25.8, multiply_adds=4.2, top1=77.7, top5=93.8),
    ("lambda_resnet50", 224): Published(source="Bello 2021 ⁴", parameters=15.0, top1=78.4),
    ("non_local50", 224): None,
    ("resnest50", 224): Published(source="Zhang et al. 2020, release", top1=81.0),
    ("resnest101", 256): Published(source="Zhang et al. 2020, release", top1=82.8),
}

# Multiply-adds with neighbours for each value of a layer's output, which torch does not count.
LOCAL: Final[dict[type[nn.Module], Callable[[Any], float]]] = {
    CoTLayer: lambda layer: layer.kernel_positions if layer.fusion != "static" else 0,
    LocalRelation: lambda layer: layer.kernel_size**2 * (1 + layer.key.out_channels / layer.transform.out_channels),
    StandAloneAttention: lambda layer: 2 * len(layer.rows) ** 2,
    StandAloneStem: lambda layer: 2 * len(layer.rows) ** 2,
}

GATES = "with gates in all blocks and tables for this size"  # of BoT-S1: why it has more parameters than published

HEAD = ("Name", "Pixels", "Parameters, M", "Multiply-adds, G", "Top-1", "Top-5", "Source", "Deviation from the source")


def native_evaluation(name: str, side: int | None = None) -> tuple[int, float] | None:
    """Pixels and crop ratio of a model's published figures: those at `side` if there are any, else its first ones; None
    for a model without."""
    rows = {pixels: published for (model, pixels), published in TABLE.items() if model == name and published}
    if not rows:
        return None
    pixels = side if side in rows else next(iter(rows))
    return pixels, rows[pixels].crop_ratio


def build(name: str, side: int) -> nn.Module:
    """The model at its nominal size, on the meta device: shapes without memory."""
    constructor = getattr(models, name)
    sized = "image_size" in inspect.signature(constructor).parameters
    with torch.device("meta"):
        return constructor(**({"image_size": side} if sized else {})).eval()


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, side: int) -> int:
    """For one image of side x side: convolutions, linear layers, attention products, and C * H * W * K * K for each
    product with K * K neighbours. Norms, activations and pooling are not counted. The model is in evaluation mode, on
    any device; the meta device takes no memory.
    """
    local: list[int] = []

    def add(layer: Any, _: Any, output: torch.Tensor) -> None:
        local.append(int(output.numel() * LOCAL[type(layer)](layer)))

    handles = [module.register_forward_hook(add) for module in model.modules() if type(module) in LOCAL]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        first = next(model.parameters())
        model(torch.zeros(1, 3, side, side, device=first.device, dtype=first.dtype))
    for handle in handles:
        handle.remove()
    pools = {f"{type(model).__name__}.{name}" for name, m in model.named_modules() if isinstance(m, AveragePool)}
    pooling = sum(sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name in pools)
    return int((counter.get_total_flops() - pooling) // 2 + sum(local))


def row(name: str, side: int) -> tuple[str, ...]:
    """The cells of a model at one image size; the last one tells what differs from the published figures as printed."""
    model, published = build(name, side), TABLE[name, side] or Published(source="–")
    parameters, multiply_adds = count_parameters(model) / 1e6, count_multiply_adds(model, side) / 1e9
    compared = {
        "parameters": (parameters, published.parameters),
        "multiply-adds": (multiply_adds, published.multiply_adds),
    }
    others = [
        f"{word} {ours:.2f}, published {theirs}"
        for word, (ours, theirs) in compared.items()
        if theirs is not None and f"{ours:.1f}" != f"{theirs:.1f}"
    ]
    if others and name.startswith("botnet_s1"):
        others.append(GATES)
    accuracies = [f"{accuracy:.1f}" if accuracy else "–" for accuracy in (published.top1, published.top5)]
    counts = (f"{parameters:.2f}", f"{multiply_adds:.2f}")
    return (name, str(side), *counts, *accuracies, published.source, "; ".join(others))


def markdown() -> str:
    """The table as docs/models.md holds it."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(row(name, side) for name, side in TABLE)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(lines).replace("|  |", "| |") + "\n"
