"""The same search for W&B's server: a file for `wandb sweep`, whose agents run train.py as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cotnet import records
from cotnet.errors import InputError
from cotnet.reporting.terminal import say
from cotnet.sweeps.space import Parameter, SweepSettings

METHODS = {"grid": "grid", "random": "random", "tpe": "bayes"}
# An agent puts the run's id into the environment of what it starts, too late for its own ${envvar:...}: Hydra reads it.
RUN_FOLDER = "${oc.env:WANDB_RUN_ID}"


def wandb_sweep(
    settings: SweepSettings, shared: Sequence[str], parameters: Sequence[Parameter], folder: Path
) -> dict[str, Any]:
    """What `wandb sweep` reads.

    Raises InputError for what W&B cannot do.
    """
    if "logger=none" in shared:
        raise InputError("logger=none in a W&B sweep: its server would see no figures; leave it out")
    command = ["${env}", "python", "${program}", *shared, f"output_dir={folder}/{RUN_FOLDER}", "${args_no_hyphens}"]
    sweep: dict[str, Any] = {
        "name": folder.name,
        "program": "train.py",
        "method": METHODS[settings.sampler],
        "metric": {"name": settings.target, "goal": settings.direction},
        "parameters": {parameter.key: _parameter(parameter) for parameter in parameters},
        "command": command,
    }
    return sweep | ({"run_cap": settings.trials} if settings.trials else {})


def export(path: Path, sweep: dict[str, Any]) -> None:
    """Write the file and say what to do with it."""
    records.write_text(path, yaml.safe_dump(sweep, sort_keys=False, width=120))
    say(f"{path}: wandb sweep {path}, then the wandb agent line that it prints, as often as there are machines")


def _parameter(parameter: Parameter) -> dict[str, Any]:
    p = parameter
    if p.values:
        return {"values": [_number(value) for value in p.values]}
    if p.integer and p.log:  # W&B's own would be rounded to 3.0, which is no integer
        raise InputError(f"{p.key}: W&B has no logarithmic range of integers; list them: choice(1,2,4,8)")
    if p.integer:
        return {"distribution": "int_uniform", "min": p.low, "max": p.high}
    return {"distribution": "log_uniform_values" if p.log else "uniform", "min": p.low, "max": p.high}


def _number(text: str) -> int | float | str:
    """A number where it is one; anything else as text, which the agent passes on unchanged."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
