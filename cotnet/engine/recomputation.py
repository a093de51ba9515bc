"""Norms and activations, computed once more for the backward pass instead of kept for it.

Between two convolutions lie results that cost one pass over the memory: normalised, rectified, interpolated maps. The
graph keeps the recipes of those, which lead back to what the convolutions gave. Rota Bulò et al., "In-Place Activated
BatchNorm" (2018), section 3, by way of autograd's hooks, so that every model gains; numbers and gradients stay the
same, bit by bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

CHEAP: Final = frozenset({F.batch_norm, F.group_norm, F.layer_norm, F.relu, F.silu, F.gelu, torch.lerp})
LEAST: Final = 2**16  # values: what is smaller is kept


class _Kept(NamedTuple):
    """What stands for a tensor: its values or how they come about, and how it looks at them."""

    source: Tensor | _Recipe
    shape: torch.Size
    strides: tuple[int, ...]
    version: int


class _Recipe:
    """A result as its function and that function's arguments."""

    def __init__(self, function: Callable[..., Tensor], args: list[Any], kwargs: dict[str, Any], device: str) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.inplace = bool(kwargs.get("inplace"))
        cast = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        self.autocast = torch.autocast(device, *cast, cache_enabled=False)
        self.kept: Tensor | None = None

    def result(self) -> Tensor:
        """Computed when it is asked for first, kept until the graph lets the recipe go."""
        if self.kept is None:
            self.kept = self.compute()
        return self.kept

    def compute(self) -> Tensor:
        """Anew; so is what a function in place overwrites."""
        first, *others = self.args
        args = [_tensor(first, anew=self.inplace), *map(_tensor, others)]
        kwargs = {name: _tensor(value) for name, value in self.kwargs.items()}
        with torch.no_grad(), self.autocast:
            return self.function(*args, **kwargs)


def _tensor(kept: Any, *, anew: bool = False) -> Any:
    """The tensor that was kept; other values as they are. Raises RuntimeError if it was modified in place since."""
    if not isinstance(kept, _Kept):
        return kept
    if isinstance(kept.source, Tensor):
        if kept.source._version != kept.version:
            raise RuntimeError("a tensor that the gradients need was modified in place after it was used")
        return kept.source
    result = kept.source.compute() if anew else kept.source.result()
    return result.as_strided(kept.shape, kept.strides)


class _Known(NamedTuple):
    tensor: weakref.ref[Tensor]
    version: int
    recipe: _Recipe


class _Recipes(TorchFunctionMode):
    """Takes down the recipe of every cheap result that lives, by the address of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, _Known] = {}
        self.rectified: _Recipe | None = None  # of the relu that is running, which keeps its result before we know it

    def recipe(self, x: Tensor) -> _Recipe | None:
        """Of a tensor, or of the one that it is a view of all of; None for other tensors."""
        known = self.known.get(x.data_ptr())
        tensor = known and known.tensor()
        if known is None or tensor is None or known.version != tensor._version:
            return None
        return known.recipe if (tensor.numel(), tensor.dtype) == (x.numel(), x.dtype) else None

    def note(self, result: Tensor, recipe: _Recipe) -> None:
        at = result.data_ptr()

        def forget(dead: weakref.ref[Tensor]) -> None:
            if at in self.known and self.known[at].tensor is dead:
                del self.known[at]

        self.known[at] = _Known(weakref.ref(result, forget), result._version, recipe)

    def keep(self, x: Any) -> Any:
        """A tensor's stand-in; other values as they are."""
        if not isinstance(x, Tensor):
            return x
        return _Kept(self.rectified or self.recipe(x) or x.detach(), x.shape, x.stride(), x._version)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in CHEAP or not args or args[0].numel() < LEAST or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        x, *others = args
        # What relu is given is kept by nobody, and what is overwritten could not be kept: they must have recipes.
        if (function is F.relu or kwargs.get("inplace")) and self.recipe(x) is None:
            return function(*args, **kwargs)
        if function is F.batch_norm and kwargs["training"]:
            others = [None, None]  # the running statistics, which it updates
        kept = {name: self.keep(value) for name, value in kwargs.items()}
        recipe = _Recipe(function, [self.keep(arg) for arg in (x, *others)], kept, x.device.type)
        self.rectified = recipe if function is F.relu else None
        try:
            result = function(*args, **kwargs)
        finally:
            self.rectified = None
        self.note(result, recipe)
        return result


@contextmanager
def norms_recomputed(*, enabled: bool = True) -> Iterator[None]:
    """The graph of a forward pass within keeps the recipes of norms and activations. Not for compiled models."""
    if not enabled:
        yield
        return
    recipes = _Recipes()
    try:
        with recipes, saved_tensors_hooks(recipes.keep, _tensor):
            yield
    finally:
        recipes.known.clear()  # the graph holds the hooks, and so this
