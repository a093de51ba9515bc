"""How a configuration differs from the published recipe that it was composed from."""

from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from cotnet.config.compose import CONF, Config, compose, flatten

# What says nothing about the recipe.
_ASIDE: Final = ("data.root", "output_dir", "explain", "launch.", "logger.", "loader.", "sweep.")


@cache
def recipe(name: str) -> Config:
    """The configuration of `experiment=NAME` alone."""
    return compose("train", [f"experiment={name}", "data.root=."])


def names() -> list[str]:
    """Every NAME of `experiment=NAME`."""
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def known(name: str) -> Config | None:
    """The recipe of that name; None if conf/experiment has none."""
    return recipe(name) if name in names() else None


def named_in(overrides: Iterable[str]) -> str | None:
    """The experiment that a command line names."""
    names = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("experiment=")]
    return names[-1] if names else None


def differences(config: Config, theirs: Config) -> list[tuple[str, Any, Any]]:
    """Each setting that is not the recipe's: key, value, the recipe's value; `auto` there allows any."""
    a, b = flatten(config), flatten(theirs)
    keys = [key for key in sorted(a.keys() | b.keys()) if not key.startswith(_ASIDE)]
    return [(key, a.get(key), b.get(key)) for key in keys if b.get(key) not in (a.get(key), "auto")]
