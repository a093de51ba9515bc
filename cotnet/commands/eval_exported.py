"""Exported files in evaluate.py: model.onnx in place of a checkpoint, with its own settings."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cotnet.commands import eval_model
from cotnet.config.compose import Config, compose
from cotnet.errors import InputError
from cotnet.export.runtime import SUFFIXES, ExportedModel, load_exported
from cotnet.integrity import checksum


def is_exported(path: Path) -> bool:
    """Whether a path is that of an exported file, by its ending."""
    return path.suffix in SUFFIXES


def read(config: Config, path: Path) -> eval_model.EvaluatedModel:
    """Reads an exported file; the configuration is completed from what it says of itself.

    Raises:
        InputError: the file cannot be read or could run code, or a setting does not go with it.
    """
    for key, given, instead in (
        ("fuse", config["fuse"], "fuse=false"),
        ("compile", config["compile"] not in ("auto", False), "compile=false"),
        ("backbone", config.get("backbone"), "no backbone"),
        ("precision", config["precision"] not in (None, "auto", "fp32"), "precision=fp32"),
    ):
        if given:
            raise InputError(f"{key}: {path} is an exported graph, which runs as it is; set {instead}")
    if path.suffix != ".onnx":
        raise InputError(
            f"{path} can hold code that runs when it is read; evaluate the checkpoint, or its export of format=onnx"
        )
    model = load_exported(path)
    about = model.about
    if about["inside"]:
        raise InputError(
            f"{path} holds its own preprocessing, which an evaluation's loader would repeat; "
            "evaluate one that was exported with preprocessing=false"
        )
    own = {**config, "checkpoint": str(path), "compile": False, "channels_last": False, "precision": "fp32", "look": 0}
    trained = _trained(about)
    config = eval_model.completed(own, {}, trained=trained)
    return eval_model.EvaluatedModel(
        model=model,
        config={**config, "exported": True},
        checksum=checksum({"file": torch.from_numpy(np.fromfile(path, dtype=np.uint8))}),
        classes=None if about["classes"] is None else tuple(about["classes"]),
        better=None,
        trained=[],
        lines=eval_model.preprocessing_lines(config, trained),
    )


def _trained(about: dict[str, Any]) -> Config:
    """conf/train.yaml with the model and the preprocessing of an exported file."""
    standard = compose("train", ["data.root=null"])
    own = {**about["preprocessing"], "eval_flip": about["eval_flip"], "num_classes": about["num_classes"]}
    backbone = {"_target_": f"cotnet.models.{about['architecture']}", **about["settings"]}
    return {**standard, "data": {**standard["data"], **own}, "backbone": backbone}


def costs(model: ExportedModel) -> dict[str, Any]:
    """Parameters and multiply-adds of the model that was exported, at its own size."""
    return {key: model.about[key] for key in ("parameters", "multiply_adds")}
