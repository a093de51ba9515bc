"""`python train.py ... explain=true`: a page and two pictures about a run, without training.

Writes only to `explain/` in the run's folder. Lists every reason why training would be refused.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch

from cotnet import parts
from cotnet.commands.contact_sheet import after_each_part, contact_sheet
from cotnet.commands.lints import differences, lints, plan_of
from cotnet.config.build import build
from cotnet.config.compose import Config, chosen
from cotnet.engine.distributed import Ranks
from cotnet.engine.launch import count_ranks
from cotnet.engine.optimizer import parameter_groups
from cotnet.engine.rank_environment import first_process
from cotnet.errors import DataError, InputError
from cotnet.figures import BLUE, GRID, ORANGE, figure
from cotnet.parts import read_settings
from cotnet.reporting.terminal import say
from cotnet.settings import Settings
from data.augmentation.settings import Augmentation
from data.sets.image_set import ImageSet
from data.sets.read import class_words, read_splits

IMAGENET: Final = {1000: 1_281_167}  # classes -> training images, as ILSVRC 2012 publishes them
ROWS: Final = 8  # images in the contact sheet
Lines = Iterator[tuple[str, str]]


def explain(config: Config) -> int:
    """Prints and draws what this configuration would train; returns 2 if training would be refused, else 0."""
    if not first_process():
        return 0
    missing = config["data"]["root"] is None
    config["data"]["root"] = config["data"]["root"] or "data.root"
    settings = read_settings(config)
    wanted = settings.launch.ranks
    ranks = wanted if wanted and wanted > 0 else count_ranks(wanted)  # may be more than this machine has GPUs
    folder = Path(config["output_dir"]) / "explain"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; choose another output_dir") from None
    absent, train = image_set(settings, missing=missing)
    images = len(train.files) if train else IMAGENET.get(settings.data.num_classes)
    refused: dict[str, None] = {}  # an ordered set
    pages: tuple[Callable[[], Lines], ...] = (
        lambda: budget(config, settings, ranks, images, absent),
        lambda: fit(settings, ranks, images, train),
        lambda: rate(config, settings, folder),
        lambda: model(config, settings),
        lambda: evaluation(settings),
        lambda: pictures(config, settings, train, folder),
        lambda: remarks(config, images),
        lambda: checked(config),
    )
    for page in pages:
        try:
            for name, text in page():
                say(f"  {name:<14} {text}")
        except InputError as error:
            refused[str(error)] = None
    for line in refused:
        say(f"  REFUSED        {line}")
    return 2 if refused else 0


def checked(config: Config) -> Lines:
    """No line; raises what training would be refused for."""
    parts.settings_of(config)
    yield from ()


def image_set(settings: Settings, *, missing: bool) -> tuple[str, ImageSet | None]:
    """Why there are no images, or an empty string and the training set."""
    if missing:
        return "data.root is not given", None
    try:
        return "", read_splits(settings.data.root)[0]
    except DataError as error:
        return str(error), None


def budget(config: Config, settings: Settings, ranks: int, images: int | None, absent: str) -> Lines:
    """Images, batch, steps."""
    train, data = settings.train, settings.data
    published = f"{images:,} to train on, ImageNet-1k's published number: {absent}" if images else f"unknown: {absent}"
    yield "images", published if absent else f"{images:,} to train on, in {data.root}"
    shares = f"{ranks} rank{'s' * (ranks > 1)}"
    if train.accumulation > 1:
        shares += f" x {train.accumulation} micro-batches"
    yield "batch", f"{train.batch_size} in all, {train.batch_size / ranks / train.accumulation:g} for each of {shares}"
    if images is not None:
        per_epoch = images // train.batch_size
        whole = train.epochs * per_epoch
        steps = min(whole, train.max_steps or whole)
        seen = f"{steps * train.batch_size:,} images seen, crops of {data.image_size} px"
        yield "steps", f"{per_epoch:,} an epoch, {steps:,} in {train.epochs} epochs: {seen}"
    repeats = config["augmentation"]["repeats"]
    if isinstance(repeats, int) and repeats > 1:
        yield "", f"{repeats} crops of each image in a batch, so an epoch shows 1/{repeats} of the images"


def fit(settings: Settings, ranks: int, images: int | None, train: ImageSet | None) -> Lines:
    """Whether batch, ranks and classes fit the images; says nothing if they do."""
    settings.train.check_batch(ranks, images or settings.train.batch_size)
    if train is not None:
        parts.check_classes(settings.data, train)
    yield from ()


def rate(config: Config, settings: Settings, folder: Path) -> Lines:
    """The learning rate that is used, and its plot."""
    optimizer = config["optimizer"]
    schedule = parts.schedule_of(config)
    augmentation: Augmentation = build(config["augmentation"], "augmentation")
    epochs = settings.train.epochs
    points = [epochs * step / 2000 for step in range(2001)]
    rates = [schedule(epoch) for epoch in points]
    sizes = [parts.training_size(augmentation, settings.data, epoch) for epoch in range(epochs)]
    png = folder / "schedule.png"
    draw_schedule(png, points, rates, sizes)
    yield (
        "learning rate",
        f"{optimizer['lr']:.6g} at its peak, {rates[0]:.4g} at first, {rates[-1]:.4g} at last; it belongs to the whole "
        "batch, so the number of ranks does not change it",
    )
    settled = ", ".join(
        f"{key} {value}" for key, value in optimizer.items() if value is not None and key not in ("_target_", "lr")
    )
    yield "optimizer", f"{optimizer['_target_']}: {settled}"
    yield "schedule", f"{config['schedule']['_target_'].rpartition('.')[2]}: {png}"
    if len(set(sizes)) > 1:
        yield "image size", f"{sizes[0]} px at first, {sizes[-1]} px in the last epoch"


def model(config: Config, settings: Settings) -> Lines:
    """The backbone's parameters and how the optimizer groups them."""
    parts.check_backbone(config["backbone"])
    backbone = parts.on_meta(config["backbone"])
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    start = f", starts from {config['backbone']['weights']}" if config["backbone"].get("weights") else ""
    name = config["backbone"].get("model_name") or config["backbone"]["_target_"].rpartition(".")[2]
    yield "backbone", f"{name}: {parameters:,} parameters, {settings.data.num_classes} classes{start}"
    given = config["optimizer"]
    groups = parameter_groups(backbone, given.get("weight_decay", 0.0), given.get("layer_decay"))
    for number, group in enumerate(parts.build_optimizer(config, groups).param_groups, start=1):
        tensors, scale = group["params"], group.get("lr_scale", 1.0)
        held = f"{sum(parameter.numel() for parameter in tensors):,} parameters in {len(tensors)} tensors"
        yield f"group {number}", f"{held}: weight decay {group.get('weight_decay', 0.0):g}, learning rate x {scale:.4g}"


def evaluation(settings: Settings) -> Lines:
    """How accuracy is measured."""
    data = settings.data
    shorter = int(data.eval_size / data.crop_ratio)  # as in data.loading.plan.central_geometry
    how = f"the shorter side to {shorter} px ({data.eval_interpolation}), the central {data.eval_size} px of it"
    yield "evaluation", f"{how}: crop ratio {data.crop_ratio:g}"


def pictures(config: Config, settings: Settings, train: ImageSet | None, folder: Path) -> Lines:
    """A contact sheet of the first images of the run, as its loader gives them and after each part of its recipe."""
    augmentation: Augmentation = build(config["augmentation"], "augmentation")
    if train is None:
        yield "an image", "there is no image set to show it on"
        return
    few = dataclasses.replace(settings.train, batch_size=min(ROWS, len(train.files)), accumulation=1)
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    loader, _ = parts.train_loader(config, dataclasses.replace(settings, train=few), train, alone)
    try:
        batch = next(loader.batches(0))
    finally:
        loader.close()
    columns = {"cropped": batch.images} | after_each_part(augmentation, settings, batch=batch, epoch=0)
    words = class_words(settings.data.root, train.classes)
    png = folder / "images.png"
    contact_sheet(columns, [words[label] for label in batch.targets.tolist()]).save(png)
    yield "an image", f"{', '.join(columns).replace(', +', ', then')}: {png}"


def remarks(config: Config, images: int | None) -> Lines:
    """What differs from the published recipe, and what is probably not meant."""
    ranks = config["launch"]["ranks"] or count_ranks(None)
    plan = plan_of(config, images=images, recipe=chosen("experiment"), ranks=ranks)
    for line in differences(plan):
        yield "not the recipe", line
    for line in lints(plan):
        yield "LINT", line


def draw_schedule(png: Path, epochs: list[float], rates: list[float], sizes: list[int]) -> None:
    """The learning rate against the epoch, and the images' size beside it where it changes."""
    with figure(png, (8, 3.6)) as (_, (axes,)):
        axes.plot(epochs, rates, color=BLUE)
        axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, epochs[-1]), ylim=(0, None))
        axes.grid(color=GRID, linewidth=0.8)
        if len(set(sizes)) > 1:
            beside = axes.twinx()
            beside.step(range(len(sizes) + 1), [*sizes, sizes[-1]], where="post", color=ORANGE)
            beside.set_ylabel("training images, px", color=ORANGE)
            beside.spines[["top", "right"]].set_visible(False)
