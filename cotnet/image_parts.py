"""From `data` of a configuration to the images of a classifier: folders, lists and manifests, or a plug-in's own."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from cotnet.config.build import build, typed
from cotnet.errors import DataError, InputError
from cotnet.settings import DataSettings
from data.sets import read
from data.sets.image_set import ImageSet


@runtime_checkable
class OwnImages(Protocol):
    """What the `data` of a plug-in is beside DataSettings: where its images come from."""

    def read_split(self, split: str) -> ImageSet:
        """The images of `train` or `val`. Raises DataError."""


def data_settings(node: Mapping[str, Any]) -> DataSettings:
    """`data` of a configuration: DataSettings, or of a plug-in's class if it has a `_target_`."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        return typed(DataSettings, node, "data")
    settings = build(node, "data")
    if not isinstance(settings, DataSettings) or not isinstance(settings, OwnImages):
        raise InputError(
            "data: derive a plug-in's class from cotnet.settings.DataSettings, and give it read_split(split)"
        )
    return settings


def read_split(settings: DataSettings, split: str) -> ImageSet:
    """The images of one split of `data`. Raises DataError."""
    return settings.read_split(split) if isinstance(settings, OwnImages) else read.read_split(settings.root, split)


def _read_splits(settings: DataSettings) -> tuple[ImageSet, ImageSet]:
    if not isinstance(settings, OwnImages):
        return read.read_splits(settings.root)
    train, val = settings.read_split("train"), settings.read_split("val")
    read.require_same_classes(settings.root, train=train.classes, val=val.classes)
    return train, val


def read_data(settings: DataSettings) -> tuple[ImageSet, ImageSet]:
    """The train and val splits, checked against the number of classes.

    Raises:
        InputError: the folder is missing, empty or inconsistent, or has another number of classes than
            `data.num_classes`.
    """
    try:
        splits = _read_splits(settings)
    except DataError as error:
        names_root = str(error).startswith(f"{settings.root}:")
        raise InputError(f"data.root{'=' if names_root else ': '}{error}") from None
    classes = len(splits[0].classes)
    if classes != settings.num_classes:
        raise InputError(
            f"{settings.root} has {classes} classes but data.num_classes is {settings.num_classes}; "
            f"set data.num_classes={classes}"
        )
    return splits
