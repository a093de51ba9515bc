"""A training run, from its resolved configuration to the exit code: what train.py calls."""

import functools
import sys
from contextlib import closing
from pathlib import Path

import torch
from torch import distributed as dist

from cotnet import assembly, runs
from cotnet.config import Config
from cotnet.engine import state as checkpoints
from cotnet.engine.compilation import compiled, require_compiler
from cotnet.engine.distributed import Ranks, synchronised
from cotnet.engine.evaluation import Interrupted, evaluate
from cotnet.engine.launch import count_ranks, launch
from cotnet.engine.losses import loss_function
from cotnet.engine.optimizer import MovingAverage, parameter_groups
from cotnet.engine.outside import first_process
from cotnet.engine.precision import Precision, choose_precision
from cotnet.engine.reports import RunReports
from cotnet.engine.signals import StopRequest
from cotnet.engine.state import State
from cotnet.engine.step import Reports, Run, settle_buckets, wrap
from cotnet.engine.terminal import say
from cotnet.engine.training import fit
from cotnet.environment import start_of
from cotnet.errors import INTERRUPTED, InputError
from cotnet.explain import explain
from cotnet.joining import joined
from cotnet.models.checkpointing import checkpoint_stages
from cotnet.nodes import build
from cotnet.sections import Settings
from data.sets.image_set import ImageSet


def run(config: Config) -> int:
    """Check everything that can be checked before a process starts, then train on every rank."""
    if config["explain"] is True:
        return explain(config)
    ranks, train_set, val_set = checked(config)
    folder = Path(config["output_dir"])
    with runs.claimed(folder):
        if runs.already_finished(folder, config, train_set.full_fingerprint):
            return 0
        runs.write_config(folder / "config.yaml", config)
        runs.say_excluded(Path(config["data"]["root"]), train=train_set.excluded, val=val_set.excluded)
        if (line := assembly.default_warmup(config)) and first_process():
            say(line)
        code = launch(worker, config, ranks)
        if code == 0:
            runs.say_where(folder)
        return code


def checked(config: Config) -> tuple[int, ImageSet, ImageSet]:
    """The number of ranks and the two splits of a configuration that can be trained; `train.precision=auto` in it
    becomes what it comes to here.

    Raises:
        InputError: a setting or an image set is wrong.
    """
    settings = assembly.settings_of(config)
    assembly.check_parts(config)
    ranks = count_ranks(settings.launch.ranks)
    train_set, val_set = assembly.read_data(settings.data)
    settings.train.check_batch(ranks, len(train_set.files))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config["train"]["precision"] = choose_precision(settings.train.precision, device)
    if settings.train.sync_bn and device.type == "cpu":
        raise InputError("train.sync_bn=true needs GPUs; set train.sync_bn=false")
    if settings.train.compile:
        require_compiler(device, "train.compile")
    return ranks, train_set, val_set


def worker(config: Config, store: dist.Store | None) -> int:
    """One rank of a run; its exit code."""
    with joined(config, store) as (ranks, stop):
        try:
            train(config, ranks, stop)
        except Interrupted:
            if ranks.first:
                say(f"interrupted; the same command continues {config['output_dir']}")
            stop.hand_on = True
            return INTERRUPTED
    return 0


def new_state(config: Config, settings: Settings, precision: Precision) -> State:
    """A run before its first step: the same on every rank."""
    torch.manual_seed(settings.seed)
    model = precision.place(assembly.build_backbone(config["backbone"]))
    if settings.train.sync_bn:
        model = synchronised(model)
    if settings.train.checkpointing:
        checkpoint_stages(model, settings.train.checkpointing)
    given = config["optimizer"]
    groups = parameter_groups(model, given.get("weight_decay", 0.0), given.get("layer_decay"))
    return State(
        model=model,
        ema=MovingAverage(model, settings.train.ema_decay),
        optimizer=assembly.build_optimizer(config, groups),
        scaler=precision.scaler(),
    )


def train(config: Config, ranks: Ranks, stop: StopRequest) -> None:
    """Build the parts in the order of their construction, continue where a checkpoint left off, train."""
    settings, folder = assembly.settings_of(config), Path(config["output_dir"])
    precision = Precision(
        name=settings.train.precision, device=ranks.device, channels_last=settings.train.channels_last
    )
    precision.set_up_process()
    train_set, val_set = assembly.read_data(settings.data)
    state = new_state(config, settings, precision)
    state.image_set = train_set.full_fingerprint
    last = folder / "checkpoints" / "last.pt"
    if last.exists():
        checkpoints.restore(state, checkpoints.load(last), ranks, last)
    loader, steps = assembly.train_loader(config, settings, train_set, ranks)
    val_loader = assembly.evaluation_loader(config, settings.data, val_set, ranks)
    with closing(loader), closing(val_loader), reporting(config, state, ranks, steps) as reports:
        run = Run(
            ranks=ranks,
            settings=settings.train,
            saving=settings.checkpoint,
            precision=precision,
            seed=settings.seed,
            replica=wrap(compiled(state.model) if settings.train.compile else state.model, ranks),
            train_loader=loader,
            steps_per_epoch=steps,
            transform=assembly.train_transform(config, settings, precision),
            criterion=loss_function(settings.train),
            schedule=assembly.schedule_of(config),
            evaluate=functools.partial(
                evaluate,
                {"raw": state.model, "ema": state.ema.module},
                val_loader,
                samples=len(val_set.files),
                flip=settings.data.eval_flip,
                prepare=assembly.evaluation_transform(settings.data, precision),
                precision=precision,
                ranks=ranks,
                stop=lambda: stop.received,
            ),
            reports=reports,
            stop=lambda: stop.received,
            folder=folder,
            config=config,
            files=train_set.files,
        )
        settle_buckets(run, state, assembly.image_size_at(config, settings, state.epoch))
        fit(run, state)


def reporting(config: Config, state: State, ranks: Ranks, steps_per_epoch: int) -> Reports:
    """Rank 0's reports, silence elsewhere; the run id of the logger becomes every rank's."""
    reports = Reports()
    if ranks.first:
        logger, terminal = build(config["logger"], "logger"), sys.stdout.isatty()
        folder = Path(config["output_dir"])
        here, steps = start_of(state.step, ranks.world_size), steps_per_epoch
        reports = RunReports(folder, logger, state, config, here, steps_per_epoch=steps, terminal=terminal)
    state.run_id = ranks.broadcast(state.run_id)
    return reports
