"""What train.py runs to train a classifier."""

import functools
import json
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cotnet import image_parts, parts
from cotnet.commands.extra_sets import ExtraSets
from cotnet.commands.run_parts import new_state, reporting
from cotnet.config.build import build
from cotnet.config.compose import Config
from cotnet.engine.compilation import compile_mode, compiled_or_not
from cotnet.engine.determinism import set_algorithms, strict_if_possible
from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import evaluate, figures
from cotnet.engine.precision import precision_of
from cotnet.engine.side_stream import beside_the_step
from cotnet.engine.signals import StopRequest
from cotnet.engine.state import State, restore
from cotnet.engine.step import Output, TrainContext, TrainData, classification, pass_on_zeros, wrap
from cotnet.engine.training import fit
from cotnet.models.checkpointing import checkpoint_stages
from cotnet.models.contextual import operator_line
from cotnet.reporting.terminal import say
from cotnet.settings import RunSettings, Settings
from data.sets.image_set import ImageSet


def backbone_of(config: Config, settings: RunSettings) -> nn.Module:
    """The backbone of a run, with its weights, as training runs it."""
    model = parts.build_backbone(config["backbone"])
    if settings.train.checkpointing:
        checkpoint_stages(model, settings.train.checkpointing)
    return model


def sizes_ahead(config: Config, settings: Settings, state: State, *, files: int) -> tuple[int, ...]:
    """The sides of the training images, in pixels, from the state's epoch to the run's end, each once."""
    epochs, first = settings.train.epochs, state.epoch
    if settings.train.max_steps is not None:  # the epochs that so many steps reach
        left = settings.train.max_steps - state.step + state.batch_in_epoch
        epochs = min(epochs, first + math.ceil(left / max(files // settings.train.batch_size, 1)))
    augmentation = build(config["augmentation"], "augmentation")
    sizes = (parts.training_size(augmentation, settings.data, epoch) for epoch in range(first, max(epochs, first + 1)))
    return tuple(dict.fromkeys(sizes))


def trained_model(settings: Settings, state: State, ranks: Ranks, *, images: int, sizes: Sequence[int]) -> nn.Module:
    """The state's model as training runs it on micro-batches (images, 3, size, size): compiled for each of the sizes if
    the settings say so, wrapped by DDP on several ranks; collective."""
    precision = precision_of(settings.train, ranks.device)

    def trial(model: nn.Module, sizes: Sequence[int] = sizes, images: int = images) -> None:
        for size in sizes:
            pass_on_zeros(model, state, precision, images=images, size=size)

    if len(sizes) > 1 and compile_mode(settings.train.compile, ranks.device) and ranks.first:
        say(f"train.compile: a graph for each image size, before training: {', '.join(map(str, sizes))} px")
    how: dict[str, Any] = {"device": ranks.device, "any_rank": ranks.any}
    eager = functools.partial(trial, state.model, images=2)  # a whole batch may fit only compiled
    loose = strict_if_possible(deterministic=settings.train.deterministic, trial=eager, **how)
    model, line = compiled_or_not(state.model, settings.train.compile, key="train.compile", trial=trial, **how)
    for told in filter(None, (operator_line(state.model, ranks.device), loose, line)):
        if ranks.first:
            say(told)
    model = wrap(model, ranks)
    if ranks.world_size > 1:
        # DDP sums gradients in buckets and rebuilds these after a process's first backward pass. Without this pass, the
        # first step of a continued run adds in another order than the same step of an uncut run, which changes bits on
        # three or more ranks.
        trial(model, sizes[:1])
    return model


def train(config: Config, ranks: Ranks, stop: StopRequest) -> None:
    """Builds the parts, restores the last checkpoint if there is one, trains."""
    settings, folder = parts.settings_of(config), Path(config["output_dir"])
    precision = precision_of(settings.train, ranks.device)
    precision.set_up_process()
    set_algorithms(ranks.device, deterministic=settings.train.deterministic)
    train_set, val_set = image_parts.read_data(settings.data)
    state = new_state(config, settings, precision, lambda: backbone_of(config, settings))
    state.image_set, state.classes = train_set.fingerprint, train_set.classes
    last = folder / "checkpoints" / "last.pt"
    if last.exists():
        restore(state, last, ranks)
    images = settings.train.batch_size // ranks.world_size // settings.train.accumulation
    sizes = sizes_ahead(config, settings, state, files=len(train_set.files))
    ddp_model = trained_model(settings, state, ranks, images=images, sizes=sizes)
    loader, steps = parts.train_loader(config, settings, train_set, ranks)
    transform = parts.train_transform(config, settings, precision)
    data = TrainData(loader=loader, steps_per_epoch=steps, transform=transform, files=train_set.files)
    val_loader = parts.evaluation_loader(config, settings.data, val_set, ranks)
    with closing(loader), closing(val_loader), reporting(config, settings, state, ranks, steps) as reports:
        context = TrainContext(
            ranks=ranks,
            settings=settings.train,
            seed=settings.seed,
            precision=precision,
            ddp_model=ddp_model,
            objective=classification(parts.criterion_of(config, settings.train), precision),
            schedule=parts.schedule_of(config),
            data=beside_the_step(data, ranks.device),
            output=Output(folder=folder, config=json.dumps(config), saving=settings.checkpoint, reports=reports),
            evaluate=functools.partial(
                validate,
                {"raw": state.model} | ({"ema": state.ema.module} if settings.train.ema_decay else {}),
                val_loader,
                val_set,
                ExtraSets(config, settings, val_set),
                flip=settings.data.eval_flip,
                prepare=parts.evaluation_transform(settings.data, precision),
                precision=precision,
                ranks=ranks,
                stop=lambda: stop.received,
            ),
            evaluate_every=settings.evaluation.every,
            stop_requested=lambda: stop.received,
        )
        fit(context, state)


def validate(
    models: dict[str, nn.Module],
    loader: Any,
    images: ImageSet,
    extra: ExtraSets,
    *,
    done: float,
    last: bool,
    **given: Any,
) -> dict[str, dict[str, float]]:
    """Top-1, top-5, loss and image count of each model on the val split, and top-1 and top-5 on the extra sets that are
    due after `done` epochs; collective. given: as engine.evaluation.evaluate."""
    tables = evaluate(models, loader, samples=len(images.files), **given)
    labels = torch.from_numpy(images.labels)
    found = {name: figures(table, labels) for name, table in tables.items()}
    for one in extra.due(done, last=last):
        for name, more in extra.figures(one, models, **given).items():
            found[name] |= more
    return found
