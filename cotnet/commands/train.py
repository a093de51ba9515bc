"""What train.py runs: check the configuration, start the ranks, train."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed as dist

from cotnet import parts
from cotnet.commands import train_classifier
from cotnet.commands.checks import Checked, checked
from cotnet.commands.explain import explain
from cotnet.commands.joining import joined
from cotnet.config import run_folder
from cotnet.config.claims import claimed
from cotnet.config.compose import Config
from cotnet.engine.determinism import set_variables
from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import Interrupted
from cotnet.engine.launch import launch
from cotnet.engine.rank_environment import first_process
from cotnet.engine.signals import StopRequest
from cotnet.errors import INTERRUPTED
from cotnet.reporting.terminal import say


def run(config: Config) -> int:
    """Checks everything that can be checked before a process starts, then trains on every rank."""
    if config["explain"] is True:
        return commands_of(config).explain(config)
    deterministic = parts.run_sections(config)["train"].deterministic
    determinism = set_variables(deterministic=deterministic, gpu=torch.cuda.is_available())
    given = commands_of(config).checked(config)
    folder = Path(config["output_dir"])
    with claimed(folder):
        taken = run_folder.taken_up(folder, given.config, given.image_set)
        if taken is None:
            return 0
        run_folder.write_config(folder / "config.yaml", taken)
        for told in filter(None, (*given.lines, parts.default_warmup(taken), determinism)):
            if first_process():
                say(told)
        code = launch(worker, taken, given.ranks)
        if code == 0:
            run_folder.say_where(folder)
        return code


class TaskCommands(NamedTuple):
    """What the programs do for a task: explain a run, check it, train on one rank."""

    explain: Callable[[Config], int]
    checked: Callable[[Config], Checked]
    train: Callable[[Config, Ranks, StopRequest], None]


def commands_of(config: Config) -> TaskCommands:
    """Those of the configuration's task."""
    if not parts.is_dense(config):
        return TaskCommands(explain, checked, train_classifier.train)
    from cotnet.commands import explain_dense, train_dense  # torchvision's detectors take a second to import

    return TaskCommands(explain_dense.explain, train_dense.checked, train_dense.train)


def worker(config: Config, store: dist.Store | None) -> int:
    """One rank of a run; its exit code."""
    with joined(config, store) as (ranks, stop):
        try:
            commands_of(config).train(config, ranks, stop)
        except Interrupted:
            if ranks.first:
                say(f"interrupted; the same command continues {config['output_dir']}")
            stop.forward = True
            return INTERRUPTED
    return 0
