"""Frozen parts of a network: no gradients, and evaluation mode for good, so that BatchNorm statistics stay."""

from collections.abc import Iterable, Sequence
from typing import Self

from torch import nn


class PartlyFrozen(nn.Module):
    """A network whose modules named in `frozen` stay in evaluation mode while the others train."""

    frozen: Sequence[str] = ()

    def stage_parts(self) -> Sequence[Sequence[str]]:
        """The names of the modules and parameters of the stem, then of each stage."""
        return []

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Like any module, but what is frozen stays in evaluation mode: no new statistics, no drop path."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).training = False
        return self

    def freeze_parts(self, names: Iterable[str]) -> None:
        """Freezes these modules and parameters. Those frozen before stay frozen."""
        inside = tuple(f"{name}." for name in names)
        for name, parameter in self.named_parameters():
            if f"{name}.".startswith(inside):
                parameter.requires_grad = False
        modules = (name for name, _ in self.named_modules() if f"{name}.".startswith(inside))
        self.frozen = tuple(dict.fromkeys([*self.frozen, *modules]))
        self.train(self.training)


def freeze(model: nn.Module, parts: int = 2) -> None:
    """Freezes the first parts of a backbone of this project: the stem, then its stages; 2: the stem and one stage.

    Their parameters get no gradient. Their modules stay in evaluation mode after `model.train()`, too: BatchNorms keep
    their statistics, no block is dropped. Raises ValueError for a model of another library, or without so many parts.
    """
    if not isinstance(model, PartlyFrozen) or not model.stage_parts():
        raise ValueError(f"{type(model).__name__} is not one of this project's backbones; freeze it with its own tools")
    known = model.stage_parts()
    if not 0 <= parts <= len(known):
        raise ValueError(f"parts={parts}: give 0 to {len(known)}, which are the stem and {len(known) - 1} stages")
    model.freeze_parts(name for names in known[:parts] for name in names)
