"""Parts of a run that every task has: the state before the first step, and the reports."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cotnet import parts
from cotnet.config import recipes
from cotnet.config.build import build
from cotnet.config.compose import Config
from cotnet.engine.distributed import Ranks, synchronised
from cotnet.engine.optimizer import MovingAverage
from cotnet.engine.precision import Precision
from cotnet.engine.state import State
from cotnet.engine.step import Reports
from cotnet.headline import CLASSIFICATION
from cotnet.pages.folders import try_report
from cotnet.reporting.environment import start_of
from cotnet.reporting.run_reports import RunReports
from cotnet.settings import RunSettings


def new_state(config: Config, settings: RunSettings, precision: Precision, make: Callable[[], nn.Module]) -> State:
    """The state before the first step of the model that `make` builds, the same on every rank."""
    torch.manual_seed(settings.seed)
    model = precision.to_device(make())
    if settings.train.sync_bn:
        model = synchronised(model)
    return State(
        model=model,
        ema=MovingAverage(model, settings.train.ema_decay),
        optimizer=parts.optimizer_of(config, model),
        scaler=precision.scaler(),
    )


def reporting(
    config: Config,
    settings: RunSettings,
    state: State,
    ranks: Ranks,
    steps_per_epoch: int,
    *,
    ranking: tuple[str, str] = CLASSIFICATION,
) -> Reports:
    """Rank 0's reports, no-op reports elsewhere; every rank gets the logger's run id."""
    reports = Reports()
    if ranks.first:
        start = start_of(state.step, ranks.world_size)
        overrides = [word for word in start["command"][1:] if "=" in word and not word.startswith("-")]
        reports = RunReports(
            Path(config["output_dir"]),
            build(config["logger"], "logger"),
            state,
            epochs=settings.train.epochs,
            max_steps=settings.train.max_steps,
            classes=config["data"]["num_classes"],
            config=config | {"recipe": recipes.named_in(overrides), "overrides": overrides},
            environment=start,
            steps_per_epoch=steps_per_epoch,
            terminal=sys.stdout.isatty(),
            page=try_report,
            ranking=ranking,
        )
    state.run_id = ranks.broadcast(state.run_id)
    return reports
