"""What train.py runs for task=detection and task=segmentation: the same loop on other parts."""

import functools
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import nn

from cotnet import dense_parts, parts
from cotnet.commands.checks import Checked, check_machine
from cotnet.commands.run_parts import new_state, reporting
from cotnet.config.compose import Config
from cotnet.dense.evaluation import Scored, evaluate_detector, evaluate_segmenter
from cotnet.dense.settings import DenseSettings, DetectionTask
from cotnet.engine.determinism import set_algorithms, strict_if_possible
from cotnet.engine.distributed import Ranks
from cotnet.engine.gpus import require_usable_gpus
from cotnet.engine.launch import count_ranks
from cotnet.engine.precision import precision_of
from cotnet.engine.signals import StopRequest
from cotnet.engine.state import State, restore
from cotnet.engine.step import Objective, Output, TrainContext, TrainData, trial_pass, wrap
from cotnet.engine.training import fit
from cotnet.reporting.terminal import say


def checked(config: Config) -> Checked:
    """A detector's or segmenter's run.

    Raises:
        InputError: a setting or an image set is wrong, or this machine lacks what a setting needs.
    """
    require_usable_gpus()
    settings = dense_parts.settings_of(config)
    parts.optimizer_of(config, dense_parts.on_meta(config, settings))
    ranks = count_ranks(settings.launch.ranks)
    train_set, val_set = dense_parts.read_splits(settings)
    settings.train.check_batch(ranks, len(train_set.files))
    chosen = {"precision": check_machine(settings.train), "compile": False}
    lines = [dropped_line(images) for images in (train_set, val_set)]
    return Checked({**config, "train": config["train"] | chosen}, ranks, train_set.fingerprint, lines)


def dropped_line(images: Any) -> str | None:
    """What of a split's annotations is left out, if anything."""
    counts = [f"{count} {what}" for what, count in getattr(images, "dropped", {}).items() if count]
    return f"{images.annotations}: left out {', '.join(counts)}" if counts else None


def trained_model(settings: DenseSettings, state: State, objective: Objective, ranks: Ranks) -> nn.Module:
    """The state's model as training runs it, wrapped by DDP on several ranks; collective. As classifiers' has it, but
    not compiled."""
    images = settings.train.batch_size // ranks.world_size // settings.train.accumulation

    def trial(model: nn.Module) -> None:
        blank = dense_parts.blank_batch(settings, ranks.device, images=images)
        trial_pass(state, lambda: objective(model, *blank)[0])

    how: dict[str, Any] = {"deterministic": settings.train.deterministic, "any_rank": ranks.any}
    loose = strict_if_possible(ranks.device, trial=functools.partial(trial, state.model), **how)
    if loose and ranks.first:
        say(loose)
    model = wrap(state.model, ranks)
    if ranks.world_size > 1:
        trial(model)
    return model


def train(config: Config, ranks: Ranks, stop: StopRequest) -> None:
    """Builds the parts, restores the last checkpoint if there is one, trains."""
    settings, folder = dense_parts.settings_of(config), Path(config["output_dir"])
    precision = precision_of(settings.train, ranks.device)
    precision.set_up_process()
    vary = settings.augmentation.crop is None
    set_algorithms(ranks.device, deterministic=settings.train.deterministic, sizes_vary=vary)
    train_set, val_set = dense_parts.read_splits(settings)
    state = new_state(config, settings, precision, lambda: dense_parts.build_model(config, settings))
    state.image_set, state.classes = train_set.fingerprint, tuple(train_set.categories)
    last = folder / "checkpoints" / "last.pt"
    if last.exists():
        restore(state, last, ranks)
    objective = dense_parts.objective(precision)
    ddp_model = trained_model(settings, state, objective, ranks)
    loader, steps = dense_parts.train_loader(config, settings, train_set, ranks)
    val_loader = dense_parts.evaluation_loader(config, settings, val_set, ranks)
    ranking = dense_parts.ranking_of_task(settings.task)
    data = TrainData(loader=loader, steps_per_epoch=steps, transform=as_they_are, files=train_set.files)
    report = reporting(config, settings, state, ranks, steps, ranking=ranking)
    with closing(loader), closing(val_loader), report as reports:
        context = TrainContext(
            ranks=ranks,
            settings=settings.train,
            seed=settings.seed,
            precision=precision,
            ddp_model=ddp_model,
            objective=objective,
            schedule=parts.schedule_of(config),
            data=data,
            output=Output(folder=folder, config=json.dumps(config), saving=settings.checkpoint, reports=reports),
            evaluate=functools.partial(
                validate,
                {"raw": state.model} | ({"ema": state.ema.module} if settings.train.ema_decay else {}),
                settings.task,
                val_loader,
                val_set,
                precision=precision,
                ranks=ranks,
                stop=lambda: stop.received,
            ),
            evaluate_every=settings.evaluation.every,
            stop_requested=lambda: stop.received,
            ranking=ranking,
        )
        fit(context, state)


def as_they_are(images: Any, targets: Any, _indices: Any, _epoch: int) -> tuple[Any, Any]:
    """The loader's images and targets: the model itself normalises."""
    return images, targets


def validate(
    models: dict[str, nn.Module],
    task: dense_parts.Task,
    loader: Any,
    images: Any,
    *,
    done: float,  # noqa: ARG001
    last: bool,  # noqa: ARG001 - as the loop calls it
    **how: Any,
) -> dict[str, dict[str, float]]:
    """The figures of each model on the val split, those without a value left out; collective. `done` and `last`: as
    classifiers' `validate` has them."""
    scored = score(models, task, loader, images, advance=lambda _images: None, **how)
    found = {}
    for name, one in scored.items():
        known = {key: value for key, value in one.figures.total.items() if value is not None}
        found[name] = dict.fromkeys(dense_parts.ranking_of_task(task), 0.0) | known | {"images": len(images.files)}
    return found


def score(
    models: dict[str, nn.Module], task: dense_parts.Task, loader: Any, images: Any, **how: Any
) -> dict[str, Scored]:
    """The figures and results of each model; collective. how: as `evaluate_detector` takes it."""
    if isinstance(task, DetectionTask):
        return evaluate_detector(models, loader, images, masks=task.masks, **how)
    return evaluate_segmenter(models, loader, images.categories, samples=len(images.files), **how)
