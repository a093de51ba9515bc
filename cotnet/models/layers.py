"""Layers that more than one family uses."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import nn

Activation = Callable[..., nn.Module]


def chain(module: nn.Module, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
    """Run the named children of a module one after the other: a Sequential whose state-dict keys have no index."""
    for name in names:
        x = getattr(module, name)(x)
    return x


def new_head(head: nn.Linear, num_classes: int) -> nn.Linear:
    """A freshly initialised classifier for the same features, on the same device and of the same dtype."""
    return nn.Linear(head.in_features, num_classes, device=head.weight.device, dtype=head.weight.dtype)


@runtime_checkable
class HasTables(Protocol):
    """A module whose position tables follow its nominal image size."""

    def resize_tables(self, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
        """Bring the tables under this prefix to the module's own size, in place; leave alone what does not fit."""


def resize_on_load(module: HasTables, state_dict: dict[str, torch.Tensor], prefix: str, *_: object) -> None:
    """A load_state_dict pre-hook."""
    module.resize_tables(state_dict, prefix)
