"""From a resolved configuration to the parts of a detector's or segmenter's run, as parts.py is for classifiers."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cotnet import parts
from cotnet.config.build import build, require_group, typed
from cotnet.config.compose import Config
from cotnet.dense.ade20k import read_ade20k
from cotnet.dense.coco import CocoSet, read_coco, require_same_categories
from cotnet.dense.detectors import build_detector
from cotnet.dense.plans import DenseEvaluationPlan, DensePlan
from cotnet.dense.published import load_published
from cotnet.dense.semantic import build_segmenter
from cotnet.dense.settings import DenseAugmentation, DenseData, DenseSettings, DetectionTask, SegmentationTask
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision
from cotnet.engine.step import Objective
from cotnet.errors import DataError, InputError
from cotnet.headline import BOXES, MASKS, SEGMENTATION
from cotnet.models.weights import read_file, select_state

Task = DetectionTask | SegmentationTask
KEYS = {"seed", "output_dir", "explain", "plugins", "task", *parts.SECTIONS, *parts.CHOICES}


def task_of(config: Config) -> Task:
    """The task of a dense configuration."""
    require_group(config["task"], "task")
    task: Task = build(config["task"], "task")
    if task.weights is not None and not task.weights.exists():
        raise InputError(f"task.weights={task.weights} does not exist; give the path of a weights file")
    return task


def settings_of(config: Config) -> DenseSettings:
    """The typed settings of a dense configuration. Checks all of it, builds nothing expensive.

    Raises:
        InputError: an unknown, missing, mistyped or out-of-range setting, named by its key, or one for classifiers.
    """
    parts.check_keys(config, KEYS)
    task = task_of(config)
    require_group(config["data"], "data")
    if "eval_short_side" not in config["data"]:
        members = "coco or shapes" if isinstance(task, DetectionTask) else "ade20k or shapes_ade"
        raise InputError(f"data: this image set is for classification; task={name_of(task)} wants data={members}")
    augmentation = build(config["augmentation"], "augmentation")
    if not isinstance(augmentation, DenseAugmentation):
        raise InputError(f"augmentation: this one is for classification; set augmentation={name_of(task)}")
    run = parts.run_sections(config)
    data = typed(DenseData, config["data"], "data")
    settings = DenseSettings(**run, data=data, task=task, augmentation=augmentation)
    parts.check_backbone(config["backbone"])
    if not str(config["loader"].get("_target_")).endswith(".DenseLoader"):
        raise InputError("loader: this one is for classification; set loader=dense")
    parts.check_loader(config)
    parts.check_optimizer(config)
    parts.schedule_of(config)
    build(config["logger"], "logger")
    _check_fit(settings)
    return settings


def name_of(task: Task) -> str:
    return "detection" if isinstance(task, DetectionTask) else "segmentation"


def _check_fit(settings: DenseSettings) -> None:
    """Raises InputError for settings that do not go together, or that dense tasks do not have."""
    train, augmentation = settings.train, settings.augmentation
    if train.compile not in ("auto", False):
        raise InputError(f"train.compile={train.compile}: detectors and segmenters are not compiled; set it to false")
    if train.checkpointing and settings.task.freeze:
        raise InputError("train.checkpointing: not with frozen stages; set it to []")
    if settings.evaluation.extra:
        raise InputError("evaluation.extra is for classifiers; set it to null")
    if train.batch_size % augmentation.aspect_group:
        raise InputError(
            f"augmentation.aspect_group={augmentation.aspect_group} must divide train.batch_size={train.batch_size}"
        )
    if isinstance(settings.task, SegmentationTask) and augmentation.crop is None:
        raise InputError("augmentation.crop=null: segmentation trains on squares; set augmentation.crop=512")


def ranking_of_task(task: Task) -> tuple[str, str]:
    """The two figures by which weights are ranked."""
    if isinstance(task, SegmentationTask):
        return SEGMENTATION
    return MASKS if task.masks else BOXES


def build_model(config: Config, settings: DenseSettings) -> nn.Module:
    """The detector or segmenter, with its weights loaded. `backbone.weights` need no classifier that fits."""
    node = dict(config["backbone"])
    if node.get("weights") is not None:
        node["head"] = "reset"
    return with_head(parts.build_backbone(node), settings.task, settings.data)


def with_head(backbone: nn.Module, task: Task, data: DenseData) -> nn.Module:
    """The backbone with the task's neck and head, and the task's weights."""
    given: dict[str, Any] = {"num_classes": data.num_classes, "mean": data.mean, "std": data.std}
    if isinstance(task, DetectionTask):
        model = build_detector(backbone, task, **given)
    else:
        model = build_segmenter(backbone, task, **given)
    if task.weights is not None:
        load_all(model, task.weights)
    return model


def on_meta(config: Config, settings: DenseSettings) -> nn.Module:
    """The detector or segmenter on the meta device: shapes without memory or weights."""
    with torch.device("meta"):
        return without_weights(parts.on_meta(config["backbone"]), settings)


def without_weights(backbone: nn.Module, settings: DenseSettings) -> nn.Module:
    """`with_head`, but for the task's weights."""
    return with_head(backbone, dataclasses.replace(settings.task, weights=None), settings.data)


def load_all(model: nn.Module, path: Path, *, ema: bool = True) -> None:
    """Loads a checkpoint of this project, or a published file, into a detector or segmenter. `ema`: averaged weights.

    Raises:
        InputError: the file cannot be read or does not fit; the model is then unchanged.
    """
    state = select_state(read_file(path), path, ema=ema)
    if load_published(model, state):
        return
    own = model.state_dict()
    if wrong := sorted(key for key in own.keys() | state.keys() if key not in own or key not in state):
        raise InputError(f"{path}: {wrong[0]} is not in both the file and this model; check backbone and task.head")
    if wrong := [key for key in own if own[key].shape != state[key].shape]:
        sizes = f"{tuple(state[wrong[0]].shape)} there and {tuple(own[wrong[0]].shape)} here"
        raise InputError(f"{path}: {wrong[0]} has the shape {sizes}; check backbone, task and data.num_classes")
    model.load_state_dict(state)


def read_set(settings: DenseSettings, split: Literal["train", "val"]) -> Any:
    """The train or val split, checked against the number of classes.

    Raises:
        InputError: a file is missing or wrong, or the set has another number of classes than `data.num_classes`.
    """
    data, task = settings.data, settings.task
    try:
        if isinstance(task, SegmentationTask):
            return read_ade20k(data.root, split, num_classes=data.num_classes)
        images = read_coco(data.root, split, masks=task.masks)
    except DataError as error:
        raise InputError(f"data.root: {error}") from None
    if len(images.categories) != data.num_classes:
        raise InputError(
            f"{data.root} has {len(images.categories)} categories but data.num_classes is {data.num_classes}; "
            f"set data.num_classes={len(images.categories)}"
        )
    return images


def read_splits(settings: DenseSettings) -> tuple[Any, Any]:
    """The train and val splits, with the same categories. Errors as `read_set`."""
    train, val = read_set(settings, "train"), read_set(settings, "val")
    if isinstance(train, CocoSet):
        try:
            require_same_categories(train, val)
        except DataError as error:
            raise InputError(f"data.root: {error}") from None
    return train, val


def train_loader(config: Config, settings: DenseSettings, images: Any, ranks: Ranks) -> tuple[Any, int]:
    """The training loader of this rank and the number of optimizer steps in an epoch."""
    settings.train.check_batch(ranks.world_size, len(images.files))
    plan = DensePlan(
        augmentation=settings.augmentation,
        samples=len(images.files),
        sizes=getattr(images, "sizes", None),
        batch_size=settings.train.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=settings.seed,
    )
    return _loader(config, settings, images, plan, ranks), plan.batches(0)


def evaluation_loader(config: Config, settings: DenseSettings, images: Any, ranks: Ranks) -> Any:
    """The loader of every image once, in batches that do not depend on the number of ranks."""
    data = settings.data
    plan = DenseEvaluationPlan(
        samples=len(images.files),
        short_side=data.eval_short_side,
        max_side=data.eval_max_side,
        multiple=32 if isinstance(settings.task, SegmentationTask) else 1,
        batch_size=data.eval_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    return _loader(config, settings, images, plan, ranks)


def _loader(config: Config, settings: DenseSettings, images: Any, plan: Any, ranks: Ranks) -> Any:
    given = {"image_set": images, "plan": plan, "output_device": ranks.device, "mean": settings.data.mean}
    return build(config["loader"], "loader", **given)


def objective(precision: Precision) -> Objective:
    """The sum of the losses that the model computes from images and targets; logs each of them."""

    def summed(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[Tensor, Any]:
        with precision.autocast():
            losses: Mapping[str, Tensor] = model(images, targets)
        parts = {f"loss_{name.removeprefix('loss_')}": loss.float() for name, loss in losses.items()}
        return torch.stack(list(parts.values())).sum(), parts

    return summed


def blank_batch(settings: DenseSettings, device: torch.device, *, images: int) -> tuple[list[Tensor], list[Any]]:
    """Black images with one object each, for a pass that warms DDP up."""
    side = settings.augmentation.crop or max(64, min(256, settings.augmentation.short_sides[0]))
    blank = torch.zeros(3, side, side, dtype=torch.uint8, device=device)
    if isinstance(settings.task, SegmentationTask):
        target = {"classes": torch.zeros(side, side, dtype=torch.int64, device=device)}
    else:
        box = torch.tensor([[0.0, 0.0, side / 2, side / 2]], device=device)
        target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64, device=device)}
        target["masks"] = torch.ones(1, side, side, dtype=torch.uint8, device=device)
    return [blank] * images, [target] * images
