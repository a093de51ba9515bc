"""Names that have moved since a checkpoint was written, so that its stored configuration stays valid."""

import json
from collections.abc import Mapping
from typing import Any, Final

from cotnet import models
from cotnet.config.build import settings_of_target

# `_target_` in a stored configuration -> its current name.
MOVED: Final = {
    "data.augment.Augmentation": "data.augmentation.settings.Augmentation",
    "data.dali.DaliLoader": "data.loading.dali.DaliLoader",
    "cotnet.engine.loggers.NoLogger": "cotnet.reporting.wandb_logger.NoLogger",
    "cotnet.engine.loggers.WandbLogger": "cotnet.reporting.wandb_logger.WandbLogger",
    "data.torchvision.TorchvisionLoader": "data.loading.torchvision.TorchvisionLoader",
}
# Settings that older configurations lack, with the value of what the older version did.
ADDED: Final = {
    "train.deterministic": True,
    "loader.device": "auto",
    "data.eval_flip": False,
    "evaluation.every": 1,
    "evaluation.extra": None,
    "evaluation.root": None,
    "logger.artifacts": False,
    "logger.save_code": False,
    "logger.system_metrics": False,
    "logger.watch": None,
    "backbone.output_stride": 32,
}
# Settings, by their full key, that no longer exist.
DROPPED: Final = {"train.recompute_norms"}


def stored_config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a checkpoint was written with, in current names."""
    config = with_current_names(json.loads(checkpoint["config"]))
    for key, value in ADDED.items():
        group, _, name = key.partition(".")
        if "task" in config and group in ("data", "loader"):  # of classifiers
            continue
        if group == "backbone" and not _has_setting(config.get(group, {}), name):
            continue
        if group != "logger" or "project" in config.get(group, {}):  # of W&B's alone
            config.setdefault(group, {}).setdefault(name, value)
    return config


def _has_setting(backbone: Mapping[str, Any], name: str) -> bool:
    """Whether this backbone is one of this project's that take the setting."""
    package, _, own = str(backbone.get("_target_")).rpartition(".")
    constructor = getattr(models, own, None) if package == "cotnet.models" else None
    return constructor is not None and name in settings_of_target(constructor)[0]


def with_current_names(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The configuration with every moved `_target_` renamed and without dropped settings; `prefix`: its full key."""
    current: dict[str, Any] = {}
    for key, value in config.items():
        if f"{prefix}{key}" in DROPPED:
            continue
        if isinstance(value, Mapping):
            current[key] = with_current_names(value, f"{prefix}{key}.")
        elif key == "_target_" and isinstance(value, str):
            current[key] = MOVED.get(value, value)
        else:
            current[key] = value
    return current
