"""The keys of cotnet.look and cotnet.export, which read one checkpoint each and run it plainly."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cotnet import parts
from cotnet.commands import eval_model
from cotnet.config.build import convert, require_group, settings_of_target
from cotnet.config.compose import Config
from cotnet.errors import InputError
from cotnet.settings import DataSettings, Section

# Of evaluate.py, whose configuration is completed here: how the network runs.
FIXED: Final = {"precision": "fp32", "channels_last": False, "compile": False, "fuse": False, "suite": None}


def check_tool_keys(config: Config, settings: type[Section]) -> None:
    """Raises InputError for an unknown key, or a value of the wrong kind or out of range."""
    own = {field.name for field in dataclasses.fields(settings)}
    parts.check_keys(config, {*own, "backbone", "data", "loader", "plugins"})
    for key in ("data", "loader"):
        require_group(config[key], key)
    check_own_keys(config, settings)
    for field in dataclasses.fields(DataSettings):
        if (value := config["data"].get(field.name)) is not None:
            convert(value, field.type, f"data.{field.name}")


def check_own_keys(config: Config, settings: Callable[..., Section], *, but: Sequence[str] = ()) -> None:
    """Raises InputError for a value of the wrong kind or out of range among a program's own keys."""
    for name, hint in settings_of_target(settings)[0].items():
        if name not in but:
            convert(config[name], hint, name)


def single_checkpoint(config: Config) -> Path:
    """The file that `checkpoint` means. Raises InputError for a folder of several runs."""
    files = eval_model.checkpoint_files(config["checkpoint"])
    if len(files) > 1:
        raise InputError(f"checkpoint={config['checkpoint']} holds {len(files)} runs; give one of them")
    return files[0]
