"""`python -m cotnet.sweep FOLDER`: the results of a sweep so far, whether it runs or not, or a sweep for W&B."""

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from cotnet import records
from cotnet.commands.program import one_line
from cotnet.config.compose import to_yaml
from cotnet.errors import InputError
from cotnet.files import write_text
from cotnet.reporting.terminal import say
from cotnet.sweeps.command import compose_plan
from cotnet.sweeps.results import show
from cotnet.sweeps.space import Parameter, SweepPlan

METHODS = {"grid": "grid", "random": "random", "tpe": "bayes"}
# Hydra reads the run's id: an agent resolves its own ${envvar:...} before it sets this variable.
RUN_FOLDER = "${oc.env:WANDB_RUN_ID}"


def export(path: Path, plan: SweepPlan) -> None:
    """Write the file that `wandb sweep` reads. Raises InputError for what W&B cannot do."""
    settings = plan.settings
    if "logger=none" in plan.shared:
        raise InputError("logger=none in a W&B sweep: its server would see no figures; leave it out")
    command = ["${env}", "python", "${program}", *plan.shared, f"output_dir={plan.folder}/{RUN_FOLDER}"]
    sweep: dict[str, Any] = {
        "name": plan.folder.name,
        "program": "train.py",
        "method": METHODS[settings.sampler],
        "metric": {"name": _metric(settings.target, settings.direction), "goal": settings.direction},
        "parameters": {parameter.key: _parameter(parameter) for parameter in plan.parameters},
        "command": [*command, "${args_no_hyphens}"],
    }
    sweep |= {"run_cap": settings.trials} if settings.trials else {}
    write_text(path, to_yaml(sweep))
    say(f"{path}: wandb sweep {path}, then the wandb agent line that it prints, as often as there are machines")


def _metric(target: str, direction: str) -> str:
    """What the runs' summary holds of the target: its best value, if the direction is the one that we call best.

    W&B compares the summary's values, and a history's last value stands there.
    """
    best = records.best_figures([{target: value} for value in (0.0, 1.0)])
    return next((name for name, value in best.items() if (value == 1.0) == (direction == "maximize")), target)


def _parameter(parameter: Parameter) -> dict[str, Any]:
    p = parameter
    if p.values:
        return {"values": [_number(value) for value in p.values]}
    if p.integer and p.log:  # W&B draws 3.0 there, which is no integer
        raise InputError(f"{p.key}: W&B has no logarithmic range of integers; list them: choice(1,2,4,8)")
    kind = "int_uniform" if p.integer else "log_uniform_values" if p.log else "uniform"
    return {"distribution": kind, "min": p.low, "max": p.high}


def _number(text: str) -> int | float | str:
    """A number, or else the text, which the agent passes on unchanged."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def main() -> None:
    """Print the table and draw the plot of each folder, or write a sweep for W&B."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.sweep", description=__doc__)
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the sweep of these overrides for W&B")
    parser.add_argument("words", nargs="+", metavar="FOLDER | OVERRIDE")
    arguments = parser.parse_args()
    with one_line(keep=False):
        if arguments.export:
            export(arguments.export, compose_plan(arguments.words))
            return
        try:
            for folder in arguments.words:
                show(Path(folder))
        except BrokenPipeError:  # its reader, head or less, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
