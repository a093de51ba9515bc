"""Parameter groups of a backbone, and the moving average of its weights."""

import copy
import itertools
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Two groups: with weight decay, and without (biases, norms and the model's exemptions).

    `layer_decay`: two groups for each of the model's `layers`, with `lr_scale` 1 for the head and `layer_decay` times
    the next layer's for each layer before it (ELECTRA, arXiv:2003.10555, appendix A; BEiT, arXiv:2106.08254).
    """
    exempt = _exempt(model)
    if layer_decay is None:
        return _with_and_without_decay(list(model.parameters()), exempt, weight_decay)
    groups = []
    for distance, layer in enumerate(reversed(layers(model))):
        scale = {"lr_scale": layer_decay**distance}
        groups += [group | scale for group in _with_and_without_decay(layer, exempt, weight_decay)]
    return groups


def _exempt(model: nn.Module) -> set[nn.Parameter]:
    """Parameters without weight decay: one-dimensional ones (biases, norms), and those that the model's
    `no_weight_decay()` names (timm's convention)."""
    named = set(getattr(model, "no_weight_decay", set)())
    return {parameter for name, parameter in model.named_parameters() if parameter.ndim <= 1 or name in named}


def _with_and_without_decay(
    parameters: list[nn.Parameter], exempt: set[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    decayed = [p for p in parameters if p.requires_grad and p not in exempt]
    plain = [p for p in parameters if p.requires_grad and p in exempt]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters by depth: the stem, each block, the head, in the order in which the model registers its modules.

    A block is an instance of a class that occurs twice in one container. Everything before the first block is the stem,
    and so are parameters outside all layers (tokens, position tables: BEiT). A norm belongs to the layer after it.
    """
    blocks = {kind for module in model.modules() for kind, count in Counter(_kinds(module)).items() if count > 1}
    stacks = {module for module in model.modules() if blocks.intersection(_kinds(module))}
    taken_apart = {module for module in model.modules() if not stacks.isdisjoint(module.modules())} | {model}
    found: list[list[nn.Parameter]] = [[]]
    in_stem = bool(blocks)

    def take(module: nn.Module) -> None:
        nonlocal in_stem
        if module not in taken_apart:
            own = list(module.parameters())
            in_stem = in_stem and type(module) not in blocks
            if own and not in_stem and any(p.ndim > 1 for p in found[-1]):
                found.append([])
            found[-1].extend(own)
            return
        found[0].extend(module.parameters(recurse=False))
        for child in module.children():
            take(child)

    take(model)
    return found


def _kinds(module: nn.Module) -> list[type]:
    """The classes of a container's children that have children of their own."""
    listed = module.children() if isinstance(module, LISTS) else ()
    return [type(child) for child in listed if not isinstance(child, LISTS) and any(child.children())]


class MovingAverage:
    """Exponential moving average of weights and buffers; `module` is the averaged model.

    The decay at update t is min(decay, (1 + t) / (10 + t)): short runs forget the initial weights. (torch's
    AveragedModel keeps its counter on the device; reading it would synchronise at every step.) With decay 0 `module` is
    the model itself: no copy, nothing to update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(model).requires_grad_(requires_grad=False) if decay else model
        self._averaged, self._averaged_counts = _tensors(self.module)
        self._current, self._current_counts = _tensors(model)

    @torch.no_grad()
    def update(self) -> None:
        """Averages in the model's current weights."""
        rate = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if not self.decay:
            return
        torch._foreach_lerp_(self._averaged, self._current, 1 - rate)
        if self._current_counts:
            torch._foreach_copy_(self._averaged_counts, self._current_counts)


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Floating-point parameters and buffers, which are averaged; integer buffers, which are copied."""
    tensors = [t.detach() for t in itertools.chain(model.parameters(), model.buffers())]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
