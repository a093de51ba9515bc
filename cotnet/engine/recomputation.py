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


class Recipe:
    """A result, as its function and that function's arguments: tensors, other recipes, numbers."""

    def __init__(self, function: Callable[..., Tensor], args: list[Any], kwargs: dict[str, Any], device: str) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        given = (*args, *kwargs.values())
        self.versions = [(x, x._version) for x in given if isinstance(x, Tensor)]
        self.cast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
        )
        self.kept: Tensor | None = None

    def result(self) -> Tensor:
        """Computed when it is asked for first, kept until the graph lets the recipe go."""
        if self.kept is None:
            self.kept = self.compute()
        return self.kept

    def compute(self) -> Tensor:
        """Anew. Raises RuntimeError if an argument was modified in place since, as autograd does."""
        if any(x._version != version for x, version in self.versions):
            raise RuntimeError(
                f"an argument of {self.function.__name__} was modified in place before it was used again"
            )
        first, *others = self.args
        if isinstance(first, Recipe):
            first = first.compute() if self.kwargs.get("inplace") else first.result()
        others = [x.result() if isinstance(x, Recipe) else x for x in others]
        with torch.no_grad(), self.cast:
            return self.function(first, *others, **self.kwargs)


class _Known(NamedTuple):
    tensor: weakref.ref[Tensor]
    version: int
    recipe: Recipe


class _Kept(NamedTuple):
    """What the graph keeps in place of a tensor: a recipe of its values, and how it looks at them."""

    recipe: Recipe
    shape: torch.Size
    strides: tuple[int, ...]


class _Recipes(TorchFunctionMode):
    """Takes down the recipe of every cheap result, by the address of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, _Known] = {}

    def recipe(self, x: Tensor) -> Recipe | None:
        """Of a tensor, or of the one that it is a view of all of; None for other tensors."""
        known = self.known.get(x.data_ptr())
        tensor = known and known.tensor()
        if known is None or tensor is None or known.version != tensor._version:
            return None
        return known.recipe if (tensor.numel(), tensor.dtype) == (x.numel(), x.dtype) else None

    def ingredient(self, x: Any) -> Any:
        return (self.recipe(x) or x.detach()) if isinstance(x, Tensor) else x

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in CHEAP or args[0].numel() < LEAST:
            return function(*args, **kwargs)
        x, *others = args
        if kwargs.get("inplace") and self.recipe(x) is None:  # what it overwrites is in no recipe
            return function(*args, **kwargs)
        if function is F.batch_norm and kwargs["training"]:
            others = [None, None]  # the running statistics, which it updates
        ingredients = [self.ingredient(arg) for arg in (x, *others)]
        recipe = Recipe(function, ingredients, {k: self.ingredient(v) for k, v in kwargs.items()}, x.device.type)
        if kwargs.get("inplace"):  # known before it runs, since relu keeps its result
            self.known[x.data_ptr()] = _Known(weakref.ref(x), x._version + 1, recipe)
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        self.known[result.data_ptr()] = _Known(weakref.ref(result), result._version, recipe)
        return result

    def pack(self, x: Tensor) -> Tensor | _Kept:
        recipe = self.recipe(x)
        return x.detach() if recipe is None else _Kept(recipe, x.shape, x.stride())


def _unpack(kept: Tensor | _Kept) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept.recipe.result().as_strided(kept.shape, kept.strides)


@contextmanager
def norms_recomputed() -> Iterator[None]:
    """The graph of a forward pass within keeps the recipes of norms and activations. Not for compiled models."""
    recipes = _Recipes()
    try:
        with recipes, saved_tensors_hooks(recipes.pack, _unpack):
            yield
    finally:
        recipes.known.clear()  # the graph holds the hooks, and so this
