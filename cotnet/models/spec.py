"""A backbone knows its constructor and settings: `model.spec`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import nn

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)


class ModelSpec(NamedTuple):
    """How to build a model again: `getattr(cotnet.models, name)(**settings)`, with fresh weights."""

    name: str
    settings: dict[str, Any]  # those that were given


def constructor(function: Callable[P, M]) -> Callable[P, M]:
    """Decorator: puts the name and the given settings of a constructor into the model's `spec`, a ModelSpec."""

    @functools.wraps(function)
    def construct(*args: P.args, **settings: P.kwargs) -> M:
        model = function(*args, **settings)
        given = {name: named(value) if callable(value) else value for name, value in settings.items()}
        model.spec = ModelSpec(function.__name__, given)  # type: ignore[assignment]
        return model

    return construct


def named(function: Callable[..., Any]) -> dict[str, Any]:
    """A function, or a partial of one, as configurations name it: its import path as `_target_`, and its settings."""
    inner = getattr(function, "func", function)
    return {"_target_": f"{inner.__module__}.{inner.__qualname__}", **getattr(function, "keywords", {})}
