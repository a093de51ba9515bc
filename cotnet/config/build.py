"""From a configuration node to a typed object: `typed` makes a dataclass, `build` calls the node's `_target_`.

Every mistake is an InputError that names its key.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cotnet.config import plugins
from cotnet.errors import DataError, InputError
from cotnet.settings import Setting, is_nullable

T = TypeVar("T")

# The targets allowed in each group. A prefix such as `torch.` would allow a configuration to run any function in it.
TARGETS = {
    "optimizer": r"(torch\.optim|timm\.optim)\.[A-Z]\w*",
    "schedule": r"cotnet\.engine\.schedule\.[a-z]\w*",
    "task": r"cotnet\.dense\.settings\.[A-Z]\w*Task",
    "augmentation": r"(data\.augmentation|cotnet\.dense)\.settings\.[A-Z]\w*",
    "loader": r"(data\.loading\.(dali|torchvision)|cotnet\.dense\.loader)\.[A-Z]\w*",
    "logger": r"cotnet\.reporting\.\w+\.[A-Z]\w*",
    "backbone": r"cotnet\.models\.[a-z]\w*",
}
# What to do about a package that a target imports and that is not installed.
EXTRAS = {
    "timm": "pip install 'cotnet[timm]'",
    "nvidia": "pip install 'cotnet[cu13]' (cu12 for CUDA 12), or set loader=torchvision",
}


def nearest(word: str, names: Iterable[str], *, prefix: str = "") -> str:
    """The end of an error line: the closest valid names, or all names if none is close."""
    names = sorted(names)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(prefix + name for name in close)}?"
    return f"valid: {', '.join(prefix + name for name in names[:40])}" if names else "nothing is valid here"


def about(key: str, error: ValueError) -> str:
    """A ValueError about a setting of `key` as one line that begins with the setting's full name."""
    line = str(error).splitlines()[0]
    return f"{key}.{line}" if re.match(r"\w+=", line) else f"{key}: {line}"


def typed(cls: type[T], node: Any, key: str) -> T:
    """The frozen dataclass `cls` from a configuration node.

    Raises InputError that names the key for an unknown, missing, mistyped or out-of-range value; what does not go
    together `cls` refuses in `__post_init__` by raising ValueError.
    """
    require_group(node, key)
    return _call(cls, node, key, {})


def require_group(node: Any, key: str) -> None:
    """Raises InputError unless the value of `key` is a group of settings."""
    if not isinstance(node, Mapping):
        raise InputError(f"{key}={shown(node)} must be a group of settings; set its own keys, {key}.NAME=VALUE")


def build(node: Mapping[str, Any], key: str, **given: Any) -> Any:
    """Calls the node's `_target_` with its other values and `given`. `key`: the group, which limits the targets.

    Raises InputError for a target outside the group's allow-list and as `typed` does.
    """
    return _call(target_of(node, key), _without_target(node), key, given)


def bind(node: Mapping[str, Any], key: str, *, later: tuple[str, ...], **given: Any) -> functools.partial[Any]:
    """`build`, but for a function whose arguments `later` come with each call."""
    target, values = target_of(node, key), _without_target(node)
    return functools.partial(target, **_values(target, values, key, {*given, *later}), **given)


def check(node: Mapping[str, Any], key: str, given: Iterable[str]) -> None:
    """Raise what `build` would raise before calling, knowing only the names of what will be `given`."""
    _values(target_of(node, key), _without_target(node), key, set(given))


def target_of(node: Mapping[str, Any], key: str) -> Callable[..., Any]:
    """The function or class that a node of the group `key` names; InputError for one that is not allowed or missing."""
    name = node.get("_target_")
    if isinstance(name, str) and plugins.admits(name):
        return plugins.target(name, key)
    pattern = TARGETS.get(key)
    if not isinstance(name, str) or not pattern or not re.fullmatch(pattern, name):
        wanted = f"it must match {pattern}" if pattern else "only a package of your own has one"
        raise InputError(f"{key}._target_ {name!r} is not allowed; {wanted}{plugins.advice(name)}")
    try:
        module, _, own = name.rpartition(".")
        target = getattr(importlib.import_module(module), own)
    except (ImportError, AttributeError) as error:
        missing = str(error.name).partition(".")[0] if isinstance(error, ImportError) else ""
        extra = f"; {EXTRAS[missing]}" if missing in EXTRAS else ""
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
    except DataError as error:
        raise InputError(about(key, error)) from None
    except InputError:
        raise
    except (ValueError, *BUILD_ERRORS) as error:
        names_setting = isinstance(error, ValueError) and re.match(r"\w+=", str(error))
        if target.__module__.startswith(("cotnet.engine", "data.")) or names_setting:
            if not isinstance(error, ValueError):  # a fault of ours
                raise
            raise InputError(about(key, error)) from None
        given_settings = ", ".join(f"{key}.{name}={shown(value)}" for name, value in node.items())
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise InputError(f"{key} cannot be built: {reason}; it has {given_settings}") from None


# What constructors of torch, timm and of backbones raise for settings that do not go together.
BUILD_ERRORS = (RuntimeError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError)


def _values(target: Callable[..., Any], node: Mapping[str, Any], key: str, given: set[str]) -> dict[str, Any]:
    hints, required, others = settings_of_target(target)
    names = hints.keys() - given
    for name in node:
        if name not in names and others is None:
            raise InputError(f"{key}.{name} is not a setting; {nearest(name, names, prefix=f'{key}.')}")
    for name in sorted(required - given - node.keys()):
        wanted = in_words(plain(hints[name])) if hints[name] is not Any else "a value"
        raise InputError(f"{key}.{name} is required; set {key}.{name} to {wanted}")
    return {name: convert(value, hints.get(name, Any), f"{key}.{name}") for name, value in node.items()}


@functools.cache
def settings_of_target(target: Callable[..., Any]) -> tuple[dict[str, Any], set[str], Any]:
    """The types by name of what a function or class takes, the names without a default, and the type of any others.

    A declared setting's type is Annotated with its Setting. `**settings: Unpack[T]` stands for the keys of the typed
    dictionary T. The type of any others is None if the target takes no others.
    """
    parameters = inspect.signature(target).parameters
    is_class = isinstance(target, type) and not dataclasses.is_dataclass(target)
    function = inspect.getattr_static(target, "__init__") if is_class else target
    annotations = typing.get_type_hints(function, include_extras=True)
    if dataclasses.is_dataclass(target):
        declared = {field.name: field.metadata.get("setting") for field in dataclasses.fields(target)}
        annotations |= {name: Annotated[annotations[name], known] for name, known in declared.items() if known}
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    hints = {p.name: annotations.get(p.name, Any) for p in named}
    required = {p.name for p in named if p.default is p.empty}
    others = next((annotations.get(p.name, Any) for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
    if typing.get_origin(others) is typing.Unpack:
        (keys,) = typing.get_args(others)
        shared = typing.get_type_hints(keys, include_extras=True).items()
        hints |= {name: plain(hint) if typing.get_origin(hint) is typing.Required else hint for name, hint in shared}
        required |= keys.__required_keys__
        others = None
    return hints, required, others


def plain(hint: Any) -> Any:
    """The type itself, without its Setting or Required, and without a function after it."""
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) in (Annotated, typing.Required) else hint
    first, *others = typing.get_args(kind) or (kind,)
    return first if any(typing.get_origin(one) is Callable for one in others) else kind


def setting_of(hint: Any) -> Setting | None:
    """The declaration in a type that is Annotated with one."""
    return next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Setting)), None)


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint` wants it (an integer is a float, a list a tuple, a name a Path), or InputError."""
    if declared := setting_of(hint):
        converted = convert(value, plain(hint), key)
        if line := declared.refusal(key, converted, nullable=is_nullable(plain(hint))):
            raise InputError(line)
        return converted
    if isinstance(value, Mapping) and "_target_" in value:
        if key in plugins.FUNCTIONS:
            return bind(value, key, later=plugins.FUNCTIONS[key])
        raise InputError(f"{key}: a nested _target_ is not allowed")
    converted = _as(value, hint)
    if converted is not _UNFIT:
        return converted
    if typing.get_origin(hint) is typing.Literal and isinstance(value, str):
        raise InputError(f"{key}={value} is unknown; {nearest(value, map(str, typing.get_args(hint)))}")
    if isinstance(value, int | float) and _as(0, hint) is not _UNFIT and abs(value) >= LARGEST_INT:
        raise InputError(f"{key}={shown(value)} is too large; it must be {in_words(hint)} below {LARGEST_INT}")
    raise InputError(f"{key}={shown(value)} must be {in_words(hint)}")


_UNFIT: typing.Final = object()
LARGEST_INT: typing.Final = 2**31  # no setting is a larger number; a C library's int ends here


def _as(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        fitting = (converted for option in typing.get_args(hint) if (converted := _as(value, option)) is not _UNFIT)
        return next(fitting, _UNFIT)
    if origin in (tuple, list):
        return _as_sequence(value, origin, typing.get_args(hint))
    if origin is dict:
        return _as_mapping(value, *typing.get_args(hint))
    if origin is typing.Literal:
        same = (option for option in typing.get_args(hint) if type(option) is type(value) and option == value)
        return next(same, _UNFIT)
    if hint is Any or not isinstance(hint, type):  # cannot be checked here; the target checks it
        return value
    return _as_plain(value, hint)


def _as_mapping(value: Any, of_key: Any, of_value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _UNFIT
    items = {_as(key, of_key): _as(one, of_value) for key, one in value.items()}
    return _UNFIT if _UNFIT in (*items, *items.values()) else items


def _as_plain(value: Any, hint: type) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool)
    if hint is Path and (isinstance(value, str) or number):  # a folder may be called 1
        return Path(str(value))
    if number and not -LARGEST_INT < value < LARGEST_INT:
        return _UNFIT
    if hint is float and number:
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return _UNFIT
    return value if isinstance(value, hint) and (number or hint is not int) else _UNFIT


def _as_sequence(value: Any, kind: type, hints: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        return _UNFIT
    if kind is list or hints[1:] == (...,):
        hints = hints[:1] * len(value)
    items = [_as(item, hint) for item, hint in zip(value, hints, strict=False)]
    return kind(items) if len(hints) == len(value) and _UNFIT not in items else _UNFIT


_WORDS: typing.Final[dict[Any, tuple[str, str]]] = {  # one, several
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
    types.NoneType: ("null", "null"),
}


def in_words(hint: Any, *, several: bool = False) -> str:
    """What a type allows, for a person: `int | None` is "null or a whole number"."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        nullable = ["null"] * (types.NoneType in options)
        return " or ".join([*nullable, *(in_words(option) for option in options if option is not types.NoneType)])
    if origin is typing.Literal:
        *first, last = map(shown, options)
        return f"{', '.join(first)} or {last}" if first else last
    if origin in (tuple, list):
        given = typing.get_args(options[0]) if options else ()
        count = "" if origin is list or options[1:] == (...,) else f"{len(options)} "
        example = f", such as [{shown(given[0])}]" if given and not count else ""
        return f"a list of {count}{in_words(options[0], several=True)}{example}"
    if origin is dict:
        return f"names with {in_words(options[1], several=True)}, such as {{NAME: 10}}"
    return _WORDS.get(hint, ("a value of another kind",) * 2)[several]


def shown(value: Any) -> str:
    """A value as the command line writes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{shown(one)}' for key, one in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
