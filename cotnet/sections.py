"""The typed sections of a training configuration, and which keys it has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotnet.config import Config
from cotnet.engine.settings import CheckpointSettings, TrainSettings
from cotnet.errors import InputError
from cotnet.nodes import nearest, require_group, shown, typed
from data.loading.plan import CROP_RATIOS, INTERPOLATIONS


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """`data` of the configuration. `image_size` is the training crop, `eval_size` the evaluation's; `crop_ratio` is
    the crop's share of the resized shorter side; `eval_flip` averages the logits of an image and its mirror image;
    `mean`, `std` are per channel, of images in [0, 1]."""

    root: Path
    num_classes: int
    image_size: int
    eval_size: int
    eval_batch_size: int
    crop_ratio: float
    eval_interpolation: str
    eval_flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("num_classes", "image_size", "eval_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.eval_interpolation not in INTERPOLATIONS:
            raise ValueError(f"eval_interpolation={self.eval_interpolation} must be {' or '.join(INTERPOLATIONS)}")
        if not CROP_RATIOS[0] <= self.crop_ratio <= CROP_RATIOS[1]:
            raise ValueError(f"crop_ratio={self.crop_ratio:g} must be from {CROP_RATIOS[0]:g} to {CROP_RATIOS[1]:g}")
        if min(self.std) <= 0:
            raise ValueError(f"std={list(self.std)} must be positive")


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """`launch` of the configuration; `ranks` null: one per visible GPU, one without a GPU."""

    ranks: int | None
    timeout_minutes: float

    def __post_init__(self) -> None:
        if self.timeout_minutes <= 0:
            raise ValueError(f"timeout_minutes={self.timeout_minutes:g} must be positive")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The typed sections of a training configuration."""

    seed: int
    train: TrainSettings
    data: DataSettings
    launch: LaunchSettings
    checkpoint: CheckpointSettings


SECTIONS = {"train": TrainSettings, "data": DataSettings, "launch": LaunchSettings, "checkpoint": CheckpointSettings}
CHOICES = ("backbone", "loader", "augmentation", "optimizer", "schedule", "logger")


def read_settings(config: Config) -> Settings:
    """The typed sections of a training configuration, whose groups are not looked into; InputError as settings_of."""
    check_keys(config, {"seed", "output_dir", "explain", *SECTIONS, *CHOICES})
    for key in CHOICES:
        if config.get(key) is None:
            raise InputError(f"{key} is required; choose one with {key}=NAME")
        require_group(config[key], key)
    sections: dict[str, Any] = {key: typed(cls, config[key], key) for key, cls in SECTIONS.items()}
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise InputError(f"seed={shown(seed)} must be a whole number from 0 to 2**63 - 1; set seed=0")
    if not isinstance(config["explain"], bool):
        raise InputError(f"explain={shown(config['explain'])} must be true or false")
    return Settings(seed=config["seed"], **sections)


def check_keys(config: Config, known: set[str]) -> None:
    """Raise InputError for a key that no program of ours reads."""
    for key in config:
        if key not in known:
            raise InputError(f"{key} is not a setting; {nearest(key, known)}")
