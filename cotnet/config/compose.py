"""Hydra's composition as plain dictionaries. Only this module, commands/program.py and the sweeps see Hydra."""

import typing
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cotnet.errors import InputError

# What a person gives for a setting that has no default.
EXAMPLES = {
    "checkpoint": "PATH, for example checkpoint=outputs/demo/checkpoints/best.pt",
    "data.root": "DIR, the folder that holds train/ and val/, for example data.root=datasets/imagenet",
    "images": "FOLDER, a folder or list of images",
    "suite.root": "DIR, the folder that holds the test sets",
    "backbone.model_name": "NAME, for example backbone.model_name=resnet50",
}

T = TypeVar("T")
Config = dict[str, Any]

PROGRAMS = ("train", "evaluate", "look", "export")  # configurations that programs choose themselves
CONF = Path(__file__).resolve().parent.parent.parent / "conf"


def _per_256(rate: Any, batch_size: Any) -> Any:
    """The learning rate for a batch; None where the types are wrong, which is said when they are checked."""
    numbers = all(isinstance(value, (int, float)) for value in (rate, batch_size))
    return rate * batch_size / 256 if numbers else None


OmegaConf.register_new_resolver("per_256", _per_256, replace=True)
OmegaConf.register_new_resolver("first", lambda *values: next(v for v in values if v is not None), replace=True)


def resolve(node: DictConfig) -> Config:
    """The composed configuration as plain containers, interpolations resolved; a missing `???` is named.

    A run is explained without images too: `data.root` is null then.
    """
    if node.get("explain") and OmegaConf.is_missing(node.data, "root"):
        node.data.root = None
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        example = EXAMPLES.get(missing[0], "VALUE")
        raise InputError(f"{missing[0]} is required; set {missing[0]}={example}")
    return _without_empty(OmegaConf.to_container(node, resolve=True))


def _without_empty(container: Any, keys: Sequence[str] = ("task", "plugins")) -> Config:
    """Without an empty `task`, which means classification, and without empty `plugins`: configurations that were stored
    earlier have none."""
    config = typing.cast(Config, container)
    return {key: value for key, value in config.items() if value or key not in keys}


def chosen(group: str) -> str | None:
    """The member of a group that the command line chose; null outside a program."""
    if not HydraConfig.initialized():
        return None
    name = HydraConfig.get().runtime.choices.get(group)
    return None if name is None else str(name)


def own_config(name: str | None) -> list[str]:
    """`config=NAME` if `--config-name` chose another main configuration than a program does: a part of folder names."""
    return [] if name is None or name.removesuffix(".yaml") in PROGRAMS else [f"config={name}"]


def compose(config_name: str, overrides: list[str]) -> Config:
    """The resolved configuration without running anything, as the command line would compose it."""
    program_runs = GlobalHydra.instance().is_initialized()  # from conf/ as well
    with nullcontext() if program_runs else hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = resolve(hydra.compose(config_name, overrides=overrides))
        config.pop("sweep", None)  # about several runs
        return config


def unresolved(config_name: str, overrides: list[str]) -> Config:
    """The composed configuration for people to read; a value that has no default is "???"."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        node = hydra.compose(config_name, overrides=overrides)
    container = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    return _without_empty(container, ("task",))


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(config))


def flatten(config: Mapping[str, Any], prefix: str = "") -> Config:
    """{'train': {'epochs': 3}} -> {'train.epochs': 3}."""
    flat: Config = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def read_yaml(path: Path) -> Config:
    """A file that `to_yaml` wrote."""
    return typing.cast(Config, OmegaConf.to_container(OmegaConf.load(path)))
