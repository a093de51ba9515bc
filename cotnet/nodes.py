"""From a configuration node to a typed object.

`typed` turns a node into a frozen dataclass, `build` a node with a `_target_` into an object, if the target is allowed.
Every mistake is an InputError that names its key.
"""

import dataclasses
import difflib
import functools
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cotnet.errors import InputError

T = TypeVar("T")

# What a node of each group may name. A prefix such as `torch.` would let a configuration run any function in it.
TARGETS = {
    "optimizer": r"(torch\.optim|timm\.optim)\.[A-Z]\w*",
    "schedule": r"cotnet\.engine\.schedule\.[a-z]\w*",
    "augmentation": r"data\.augment\.[A-Z]\w*",
    "loader": r"data\.(dali|torchvision)\.[A-Z]\w*",
    "logger": r"cotnet\.engine\.loggers\.[A-Z]\w*",
    "backbone": r"cotnet\.models\.[a-z]\w*",
}


def nearest(word: str, names: Iterable[str], *, prefix: str = "") -> str:
    """The end of an error line: the closest valid names, or all of them when none is close, each behind `prefix`."""
    names = sorted(names)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(prefix + name for name in close)}?"
    return f"valid: {', '.join(prefix + name for name in names[:40])}" if names else "nothing is valid here"


def about(key: str, error: ValueError) -> str:
    """A ValueError of what `key` configures as one line that begins with the setting's full name."""
    line = str(error).splitlines()[0]
    return f"{key}.{line}" if re.match(r"\w+=", line) else f"{key}: {line}"


def typed(cls: type[T], node: Mapping[str, Any], key: str) -> T:
    """The frozen dataclass `cls` from a configuration node.

    Raises InputError that names the key for an unknown, missing, mistyped or out-of-range value; `cls` checks its
    ranges in `__post_init__` by raising ValueError.
    """
    return _call(cls, node, key, {})


def build(node: Mapping[str, Any], key: str, **given: Any) -> Any:
    """Call what `node._target_` names with the node's other values and `given`; `key` is the group, which sets
    what may be named.

    Raises InputError for a target outside the group's allow-list and as `typed` does.
    """
    return _call(_target(node, key), _without_target(node), key, given)


def bind(node: Mapping[str, Any], key: str, *, later: tuple[str, ...], **given: Any) -> functools.partial[Any]:
    """`build`, but for a function whose arguments `later` come with each call."""
    target, values = _target(node, key), _without_target(node)
    return functools.partial(target, **_values(target, values, key, {*given, *later}), **given)


def check(node: Mapping[str, Any], key: str, given: Iterable[str]) -> None:
    """Raise what `build` would raise before calling, knowing only the names of what will be `given`."""
    target = _target(node, key)
    _values(target, _without_target(node), key, set(given))


def _target(node: Mapping[str, Any], key: str) -> Callable[..., Any]:
    name = node.get("_target_")
    if not isinstance(name, str) or not re.fullmatch(TARGETS[key], name):
        raise InputError(f"{key}._target_ {name!r} is not allowed; it must match {TARGETS[key]}")
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        extra = "; pip install 'cotnet[timm]'" if name.startswith("timm.") and isinstance(error, ImportError) else ""
        raise InputError(f"{key}._target_ {name!r} cannot be imported: {str(error).splitlines()[-1]}{extra}") from None
    if not callable(target):
        raise InputError(f"{key}._target_ {name!r} is not a function or class")
    return target


def _without_target(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != "_target_"}


def _call(target: Callable[..., T], node: Mapping[str, Any], key: str, given: Mapping[str, Any]) -> T:
    values = _values(target, node, key, set(given))
    try:
        return target(**values, **given)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(about(key, error)) from None


def _values(target: Callable[..., Any], node: Mapping[str, Any], key: str, given: set[str]) -> dict[str, Any]:
    parameters = inspect.signature(target).parameters
    is_class = isinstance(target, type) and not dataclasses.is_dataclass(target)
    hints = typing.get_type_hints(inspect.getattr_static(target, "__init__") if is_class else target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - given
    for name in node:
        if name not in names and not open_ended:
            raise InputError(f"{key}.{name} is not a setting; {nearest(name, names, prefix=f'{key}.')}")
    for name in sorted(names - set(node)):
        if parameters[name].default is inspect.Parameter.empty:
            raise InputError(f"{key}.{name} is required; set {key}.{name}=VALUE")
    return {name: convert(value, hints.get(name, Any), f"{key}.{name}") for name, value in node.items()}


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint` wants it (an integer is a float, a list a tuple, a name a Path), or InputError."""
    if isinstance(value, Mapping) and "_target_" in value:
        raise InputError(f"{key}: a nested _target_ is not allowed")
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for option in typing.get_args(hint) if union else (hint,):
        converted = _as(value, option)
        if converted is not _UNFIT:
            return converted
    if typing.get_origin(hint) is typing.Literal:
        raise InputError(f"{key}={value} is unknown; {nearest(str(value), map(str, typing.get_args(hint)))}")
    raise InputError(f"{key}={value} is a {type(value).__name__}; wanted {_readable(hint)}")


_UNFIT: typing.Final = object()


def _as(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (tuple, list):
        return _as_sequence(value, origin, typing.get_args(hint))
    if origin is typing.Literal:
        return value if value in typing.get_args(hint) else _UNFIT
    if hint is Any or not isinstance(hint, type):  # cannot be checked here; the target checks it
        return value
    if hint is Path and isinstance(value, (str, int)):  # a folder may be called 1
        return Path(str(value))
    number = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    return value if isinstance(value, hint) and (number or hint is not int) else _UNFIT


def _as_sequence(value: Any, kind: type, hints: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        return _UNFIT
    if kind is list or hints[1:] == (...,):
        hints = hints[:1] * len(value)
    items = [_as(item, hint) for item, hint in zip(value, hints, strict=False)]
    return kind(items) if len(hints) == len(value) and _UNFIT not in items else _UNFIT


def _readable(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
