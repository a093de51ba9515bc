"""Names that have moved since a checkpoint was written, so that its stored configuration stays valid."""

import json
from collections.abc import Mapping
from typing import Any, Final

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
        if group != "logger" or "project" in config.get(group, {}):  # of W&B's alone
            config.setdefault(group, {}).setdefault(name, value)
    return config


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
