"""`explain=true` of a detector's or segmenter's run: lines and pictures about it, without training."""

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import torch

from cotnet import dense_parts, parts
from cotnet.commands.checks import Lines, machine_lines, show
from cotnet.commands.explain import batch_line, draw_schedule, folder_of, group_lines
from cotnet.config.compose import Config
from cotnet.dense.settings import DenseSettings
from cotnet.engine.distributed import Ranks
from cotnet.engine.launch import count_ranks
from cotnet.engine.rank_environment import first_process
from cotnet.errors import InputError
from cotnet.evaluation.dense_pictures import DrawnObject, frame, labelled_objects, painted
from cotnet.evaluation.picture_sheet import PicturePanel, draw_sheet
from data.sets.image_set import IGNORED

SHOWN: Final = 6  # images of the contact sheet


def explain(config: Config) -> int:
    """Prints and draws what this configuration would train; returns 2 if training would be refused, else 0."""
    if not first_process():
        return 0
    missing = config["data"]["root"] is None
    config["data"]["root"] = config["data"]["root"] or "data.root"
    settings = dense_parts.settings_of(config)
    ranks = settings.launch.ranks or count_ranks(None)
    folder = folder_of(config)
    splits: tuple[Any, Any] | None = None
    absent = "data.root is not given"
    if not missing:
        try:
            splits = dense_parts.read_splits(settings)
        except InputError as error:
            absent = str(error)
    refused = show(
        lambda: machine_lines(config, settings.train, ranks),
        lambda: images(splits, absent, refused=not missing),
        lambda: budget(settings, ranks, len(splits[0].files) if splits else None),
        lambda: rate(config, settings, folder / "schedule.png"),
        lambda: model(config, settings),
        lambda: pictures(config, settings, splits, folder / "images.png"),
    )
    return 2 if refused else 0


def images(splits: tuple[Any, Any] | None, absent: str, *, refused: bool) -> Lines:
    """The images that the run would read; raises if training needs them and they are `absent`."""
    if splits is None:
        yield "images", f"unknown: {absent}"
        if refused:
            raise InputError(absent)
        return
    train, val = splits
    yield "images", f"{len(train.files):,} to train on, {len(val.files):,} to evaluate, in {train.root.parent}"
    names = train.categories
    yield "classes", f"{len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    for split in splits:
        for what, count in getattr(split, "dropped", {}).items():
            if count:
                yield "left out", f"{count:,} {what} of {split.annotations.name}"


def budget(settings: DenseSettings, ranks: int, images: int | None) -> Lines:
    """Batch and steps; raises if the batch does not fit the images or the ranks."""
    train = settings.train
    yield from batch_line(train, ranks)
    if images is not None:
        per_epoch = images // train.batch_size
        steps = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
        yield "steps", f"{per_epoch:,} an epoch, {steps:,} in all"
    train.check_batch(ranks, images or train.batch_size)


def rate(config: Config, settings: DenseSettings, png: Path) -> Lines:
    """The learning rate that is used, and its plot."""
    schedule, epochs = parts.schedule_of(config), settings.train.epochs
    points = [epochs * step / 2000 for step in range(2001)]
    rates = [schedule(epoch) for epoch in points]
    draw_schedule(png, points, rates, sizes=[])
    yield "learning rate", f"{config['optimizer']['lr']:.6g} at its peak, {rates[0]:.4g} at first: {png}"
    given = {key: value for key, value in config["optimizer"].items() if value is not None and key != "lr"}
    yield "optimizer", ", ".join(f"{key} {value}" for key, value in given.items())


def model(config: Config, settings: DenseSettings) -> Lines:
    """The network's parameters and how the optimizer groups them."""
    network = dense_parts.on_meta(config, settings)
    count = sum(parameter.numel() for parameter in network.parameters())
    start = settings.task.weights or config["backbone"].get("weights")
    where = f"starts from {start}" if start else "starts from scratch"
    backbone = config["backbone"].get("model_name") or config["backbone"]["_target_"].rpartition(".")[2]
    yield "network", f"{settings.task.head} on {backbone}: {count:,} parameters, {where}"
    yield from group_lines(config, network)
    frozen = sum(parameter.numel() for parameter in network.parameters() if not parameter.requires_grad)
    if frozen:
        yield "", f"{frozen:,} parameters frozen"


def pictures(config: Config, settings: DenseSettings, splits: tuple[Any, Any] | None, png: Path) -> Lines:
    """The first images of the run as its loader gives them, with their objects or classes."""
    if splits is None:
        return
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    count = min(SHOWN, len(splits[0].files))
    few = dataclasses.replace(settings.train, batch_size=count)
    sized = dataclasses.replace(
        settings, train=few, augmentation=dataclasses.replace(settings.augmentation, aspect_group=1)
    )
    quiet = {**config, "loader": {**config["loader"], "threads": 0}}
    with closing(dense_parts.train_loader(quiet, sized, splits[0], alone)[0]) as loader:
        batch = next(iter(loader.batches(0)))
    panels = [
        [panel(image, target, splits[0], splits[0].files[index])]
        for image, target, index in zip(batch.images, batch.targets, batch.indices.tolist(), strict=True)
    ]
    draw_sheet(png, panels, title="as training sees them", across=3)
    yield "images", f"{count} as training sees them: {png}"


def panel(image: torch.Tensor, target: dict[str, torch.Tensor], images: Any, caption: str) -> PicturePanel:
    """An image of a batch with its target."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    if "classes" in target:
        classes = target["classes"].numpy()
        present = [int(one) for one in target["classes"].unique() if one != IGNORED]
        objects = [
            DrawnObject(name=images.categories[one], number=one, box=(0, 0, 0, 0), mask=classes == one)
            for one in present
        ]
        return PicturePanel(caption, painted(pixels, objects))
    masks = target["masks"].numpy() if "masks" in target else None
    objects = labelled_objects(target["boxes"].tolist(), target["labels"].tolist(), images.categories, masks=masks)
    return PicturePanel(caption, painted(pixels, objects), [frame(one, dashed=False) for one in objects])
