"""`python train.py ... explain=true`: a page and two pictures about a run, without training.

Writes only to `explain/` in the run's folder. Lists every reason why training would be refused.
"""

from pathlib import Path
from typing import Final

from torch import nn

from cotnet import image_parts, parts
from cotnet.commands.checks import Lines, image_lines, machine_lines, show
from cotnet.commands.contact_sheet import after_each_part, captions, contact_sheet, first_batch
from cotnet.commands.lints import differences, lints, plan_of
from cotnet.config.build import build
from cotnet.config.compose import Config, chosen
from cotnet.engine.launch import count_ranks
from cotnet.engine.rank_environment import first_process
from cotnet.errors import InputError
from cotnet.figures import BLUE, GRID, ORANGE, figure
from cotnet.parts import read_settings
from cotnet.settings import Settings, TrainSettings
from data.augmentation.settings import Augmentation
from data.sets.image_set import ImageSet

IMAGENET: Final = {1000: 1_281_167}  # classes -> training images, as ILSVRC 2012 publishes them
ROWS: Final = 8  # images in the contact sheet


def explain(config: Config) -> int:
    """Prints and draws what this configuration would train; returns 2 if training would be refused, else 0."""
    if not first_process():
        return 0
    missing = config["data"]["root"] is None
    config["data"]["root"] = config["data"]["root"] or "data.root"
    settings = read_settings(config)
    ranks = settings.launch.ranks or count_ranks(None)  # may be more than this machine has GPUs
    folder = folder_of(config)
    splits, absent = None, "data.root is not given"
    if not missing:
        try:
            splits = image_parts.read_data(settings.data)
        except InputError as error:
            absent = str(error)
    train = splits[0] if splits else None
    images = len(train.files) if train else IMAGENET.get(settings.data.num_classes)
    refused = show(
        lambda: machine_lines(config, settings.train, ranks),
        lambda: image_lines(settings.data, *splits) if splits else published(images, absent, refused=not missing),
        lambda: budget(config, settings, ranks, images),
        lambda: rate(config, settings, folder),
        lambda: model(config, settings),
        lambda: evaluation(settings),
        lambda: pictures(config, settings, train, folder),
        lambda: remarks(config, images),
    )
    return 2 if refused else 0


def published(images: int | None, absent: str, *, refused: bool) -> Lines:
    """The number of images of a published set, where they are `absent` here; `refused`: training needs them."""
    number = f"{images:,} to train on, ImageNet-1k's published number" if images else "unknown"
    yield "images", f"{number}: {absent}"
    if refused:
        raise InputError(absent)


def folder_of(config: Config) -> Path:
    """Where the pictures go, made. Raises InputError if it cannot be."""
    folder = Path(config["output_dir"]) / "explain"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; choose another output_dir") from None
    return folder


def batch_line(train: TrainSettings, ranks: int) -> Lines:
    """The batch and its shares."""
    shares = f"{ranks} rank{'s' * (ranks > 1)}"
    if train.accumulation > 1:
        shares += f" x {train.accumulation} micro-batches"
    yield "batch", f"{train.batch_size} in all, {train.batch_size / ranks / train.accumulation:g} for each of {shares}"


def budget(config: Config, settings: Settings, ranks: int, images: int | None) -> Lines:
    """Batch and steps; raises if the batch does not fit the images or the ranks."""
    train, data = settings.train, settings.data
    yield from batch_line(train, ranks)
    if images is not None:
        per_epoch = images // train.batch_size
        whole = train.epochs * per_epoch
        steps = min(whole, train.max_steps or whole)
        seen = f"{steps * train.batch_size:,} images seen, crops of {data.image_size} px"
        yield "steps", f"{per_epoch:,} an epoch, {steps:,} in {train.epochs} epochs: {seen}"
    repeats = config["augmentation"]["repeats"]
    if isinstance(repeats, int) and repeats > 1:
        yield "", f"{repeats} crops of each image in a batch, so an epoch shows 1/{repeats} of the images"
    train.check_batch(ranks, images or train.batch_size)


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
    yield from group_lines(config, backbone)


def group_lines(config: Config, model: nn.Module) -> Lines:
    """How the optimizer groups a model's parameters."""
    for number, group in enumerate(parts.optimizer_of(config, model).param_groups, start=1):
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
    batch = first_batch(config, settings, images=train, count=min(ROWS, len(train.files)))
    columns = {"cropped": batch.images} | after_each_part(augmentation, settings, batch=batch, epoch=0)
    png = folder / "images.png"
    contact_sheet(columns, captions(settings.data, train, batch)).save(png)
    yield "an image", f"{', '.join(columns).replace(', +', ', then')}: {png}"


def remarks(config: Config, images: int | None) -> Lines:
    """What differs from the published recipe, and what is probably not meant; raises what else would be refused."""
    ranks = config["launch"]["ranks"] or count_ranks(None)
    plan = plan_of(config, images=images, recipe=chosen("experiment"), ranks=ranks)
    for line in differences(plan):
        yield "not the recipe", line
    for line in lints(plan):
        yield "LINT", line
    parts.settings_of(config)


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
