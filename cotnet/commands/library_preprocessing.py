"""The preprocessing that a torchvision or timm model was trained with, beside that of a configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cotnet.config.build import shown
from cotnet.config.compose import Config
from cotnet.errors import InputError
from cotnet.evaluation.preprocessing import own_preprocessing

EXTERNAL: Final = ("cotnet.models.torchvision_model", "cotnet.models.timm_model")
PREPROCESSING: Final = ("eval_size", "crop_ratio", "eval_interpolation", "eval_flip", "mean", "std")  # keys of `data`


def in_force(model_name: str, data: Mapping[str, Any]) -> str:
    """The preprocessing of `data`, as a line for people."""
    return f"preprocessing of {model_name}: {', '.join(f'{key}={shown(data[key])}' for key in PREPROCESSING)}"


def difference(key: str, given: Any, own: Any, *, whose: str, remedy: str) -> str:
    """One value of the preprocessing that is not the model's, as a line for people."""
    return f"data.{key}={shown(given)} differs from {whose} {shown(own)}; {remedy}, unless this is meant"


def training_lines(config: Config) -> list[str]:
    """For people, if training starts from weights of such a model: the preprocessing in force, then what differs."""
    if not _starts_from_a_library(config):
        return []
    return [in_force(str(config["backbone"]["model_name"]), config["data"]), *differences(config)]


def differences(config: Config) -> list[str]:
    """What differs from the own preprocessing of the model whose weights training starts from, a line each.

    Not the size of the training crop, which belongs to the augmentation. Empty for other backbones, and for models
    whose preprocessing the library does not know.
    """
    if not _starts_from_a_library(config):
        return []
    node, data = config["backbone"], config["data"]
    name, library = str(node["model_name"]), str(node["_target_"]).rpartition(".")[2]
    try:
        own = own_preprocessing(library, name, Path(node["weights"]))
    except InputError:
        return []

    def resized(ratio: float) -> int:
        return int(own["eval_size"] / ratio)

    return [
        difference(key, data[key], own[key], whose=f"{name}'s own", remedy=f"set data.{key}={shown(own[key])}")
        for key in PREPROCESSING
        if key in own
        and data[key] != own[key]
        and not (key == "crop_ratio" and resized(data[key]) == resized(own[key]))
    ]


def _starts_from_a_library(config: Config) -> bool:
    node = config["backbone"]
    return bool(node.get("weights")) and node["_target_"] in EXTERNAL
