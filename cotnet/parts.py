"""From a resolved configuration to the parts of a run: settings, backbone, loaders, transform, optimizer.

Configuration dictionaries end here: modules below take settings and objects.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cotnet import image_parts
from cotnet.config.build import about, bind, build, check, convert, nearest, require_group, shown, typed
from cotnet.config.compose import Config
from cotnet.config.plugins import admitted
from cotnet.engine.distributed import Ranks
from cotnet.engine.losses import Criterion, loss_function
from cotnet.engine.optimizer import parameter_groups
from cotnet.engine.precision import Precision
from cotnet.engine.schedule import WARMUP_EPOCHS, warmup_of
from cotnet.errors import DataError, InputError
from cotnet.models.weights import load_weights, trusted_backbone
from cotnet.settings import OPTIMIZER, DataSettings, Pretrained, Settings, TrainSettings
from data.augmentation.settings import Augmentation
from data.augmentation.transform import Transform, normalize
from data.loading.plan import EvaluationPlan, TrainPlan
from data.loading.progressive import ProgressiveLoader, ramp
from data.sets.image_set import ImageSet

SECTIONS: dict[str, Any] = {
    field.name: field.type for field in dataclasses.fields(Settings) if dataclasses.is_dataclass(field.type)
}
CHOICES = ("backbone", "loader", "augmentation", "optimizer", "schedule", "logger")


def is_dense(config: Config) -> bool:
    """Whether a configuration is a detector's or a segmenter's: dense_parts.py has its parts."""
    return config.get("task") is not None


def read_settings(config: Config) -> Settings:
    """The typed sections of a training configuration; does not check the groups. Errors as settings_of."""
    if is_dense(config):
        raise InputError("task: this program is for classifiers; leave it out, and recipes of detectors and segmenters")
    check_keys(config, {"seed", "output_dir", "explain", "plugins", "loss", *SECTIONS, *CHOICES})
    sections = run_sections(config)
    if isinstance(config["data"], Mapping) and "eval_short_side" in config["data"]:
        raise InputError("data: this image set is not for classification; add task=detection or task=segmentation")
    if str(config["loader"].get("_target_")).endswith(".DenseLoader"):
        raise InputError("loader=dense is for task=detection and task=segmentation; set loader=dali or torchvision")
    return Settings(**sections, data=image_parts.data_settings(config["data"]))


def run_sections(config: Config) -> dict[str, Any]:
    """The fields of RunSettings. Errors as settings_of."""
    for key in CHOICES:
        if config.get(key) is None:
            raise InputError(f"{key} is required; choose one with {key}=NAME")
        require_group(config[key], key)
    sections: dict[str, Any] = {key: typed(cls, config[key], key) for key, cls in SECTIONS.items() if key != "data"}
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise InputError(f"seed={shown(seed)} must be a whole number from 0 to 2**63 - 1; set seed=0")
    explain = convert(config["explain"], bool, "explain")
    named = {"output_dir": config["output_dir"], "explain": explain, "plugins": tuple(config.get("plugins", ()))}
    return {"seed": seed, **named, **sections}


def check_keys(config: Config, known: set[str]) -> None:
    """Raises InputError for an unknown key."""
    for key in config:
        if key not in known:
            raise InputError(f"{key} is not a setting; {nearest(key, known)}")


OURS = ("lr_per_256", "layer_decay")  # of `optimizer`: not its constructor's
LOADER_GIVEN = ("image_set", "plan", "output_device", "interpolation", "mean")


def settings_of(config: Config) -> Settings:
    """The typed sections of a training configuration. Checks all of it, builds nothing expensive. Raises InputError for
    an unknown, missing, mistyped or out-of-range setting, named by its key."""
    settings = read_settings(config)
    check_backbone(config["backbone"])
    if settings.train.checkpointing and not is_ours(config["backbone"]):
        raise InputError("train.checkpointing is for this project's own backbones; set train.checkpointing=[]")
    check_loader(config)
    check_optimizer(config)
    augmentation = build(config["augmentation"], "augmentation")
    if not isinstance(augmentation, Augmentation):
        raise InputError("augmentation: derive the class of a plug-in from data.augmentation.settings.Augmentation")
    training_size(augmentation, settings.data, 0)
    criterion_of(config, settings.train)
    schedule_of(config)
    build(config["logger"], "logger")
    return settings


def check_parts(config: Config) -> None:
    """Builds the cheap parts: raises InputError for settings that do not fit together."""
    if not is_ours(config["backbone"]):
        build_optimizer(config, [{"params": [nn.Parameter(torch.zeros(1))]}])
    else:
        optimizer_of(config, on_meta(config["backbone"]))


def is_ours(node: Mapping[str, Any]) -> bool:
    """Whether a backbone's node names one of this project's own: not a library's, not a plug-in's."""
    target = str(node.get("_target_"))
    return target.startswith("cotnet.models.") and not target.endswith("_model")


def on_meta(node: Mapping[str, Any]) -> nn.Module:
    """The backbone on the meta device: shapes without memory or weights."""
    with torch.device("meta"):
        return build_backbone({**node, "weights": None, "head": "keep"})


def check_loader(config: Config) -> None:
    """Raises InputError for an unknown loader or loader setting, or one that needs a GPU where there is none."""
    check(config["loader"], "loader", LOADER_GIVEN)
    if config["loader"].get("device") == "gpu" and not torch.cuda.is_available():
        raise InputError("loader.device=gpu needs a GPU; set loader.device=auto or cpu")


def check_backbone(node: Mapping[str, Any]) -> None:
    """Raises InputError for an unknown backbone or backbone setting."""
    check(trusted_backbone(dict(node), plugins=admitted()), "backbone", ())
    start = pretrained(node)
    if start.weights is not None and not start.weights.exists():
        raise InputError(f"backbone.weights={start.weights} does not exist; give the path of a weights file")
    if start.weights is None and start.head == "reset":
        raise InputError("backbone.head=reset wants weights to start from; set backbone.weights=PATH")


def pretrained(node: Mapping[str, Any]) -> Pretrained:
    """Which weights a backbone's node starts from."""
    return typed(Pretrained, {key: node[key] for key in ("weights", "ema", "head") if key in node}, "backbone")


def build_backbone(node: Mapping[str, Any]) -> nn.Module:
    """The backbone of a configuration, with its `weights` loaded."""
    model: nn.Module = build(trusted_backbone(dict(node), plugins=admitted()), "backbone")
    start = pretrained(node)
    if start.weights is not None:
        load_weights(model, start.weights, ema=start.ema, head=start.head)
    return model


def schedule_of(config: Config) -> Callable[[float], float]:
    """The learning rate as a function of the fractional epoch.

    Raises:
        InputError: the schedule does not fit the run.
    """
    given = {"peak": float(config["optimizer"]["lr"]), "epochs": float(config["train"]["epochs"])}
    node = dict(config["schedule"])
    if node.get("warmup_epochs", 0) is None:
        node["warmup_epochs"] = warmup_of(None, epochs=given["epochs"])
    schedule = bind(node, "schedule", later=("epoch",), **given)
    try:
        schedule(0.0)
    except ValueError as error:
        raise InputError(about("schedule", error)) from None
    return schedule


def default_warmup(config: Config) -> str | None:
    """A line for people if the default warm-up is shortened to fit the run, else None."""
    epochs = config["train"]["epochs"]
    if config["schedule"].get("warmup_epochs", 0) is not None or epochs >= 10 * WARMUP_EPOCHS:
        return None
    return f"schedule.warmup_epochs: {warmup_of(None, epochs=epochs):g}, a tenth of the run (5 from 50 epochs on)"


def _optimizer_node(config: Config) -> Config:
    """The settings of the optimizer's constructor. Raises InputError for one, of it or of OURS, that is wrong."""
    given = {"lr": None, **config["optimizer"]}
    for key, hint in OPTIMIZER.items():
        if key in given:
            convert(given[key], hint, f"optimizer.{key}")
    return {key: value for key, value in config["optimizer"].items() if key not in OURS}


def check_optimizer(config: Config) -> None:
    """Raises InputError for an unknown optimizer or a setting of it that is wrong."""
    check(_optimizer_node(config), "optimizer", ("params",))


def optimizer_of(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the `parameter_groups` of a model."""
    given = config["optimizer"]
    return build_optimizer(config, parameter_groups(model, given.get("weight_decay", 0.0), given.get("layer_decay")))


def build_optimizer(config: Config, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer over parameter groups."""
    optimizer: torch.optim.Optimizer = build(_optimizer_node(config), "optimizer", params=groups)
    return optimizer


def criterion_of(config: Config, train: TrainSettings) -> Criterion:
    """The loss of a plug-in that `loss` names, a function of `logits` and `targets`; else that of `train.loss`."""
    if config.get("loss") is None:
        return loss_function(train)
    require_group(config["loss"], "loss")
    return bind(config["loss"], "loss", later=("logits", "targets"))


def train_loader(config: Config, settings: Settings, images: ImageSet, ranks: Ranks) -> tuple[Any, int]:
    """The training loader of this rank and the number of optimizer steps in an epoch.

    Raises:
        InputError: the batch does not divide over the ranks, or is larger than the set.
    """
    settings.train.check_batch(ranks.world_size, len(images.files))
    augmentation: Augmentation = build(config["augmentation"], "augmentation")
    plan = TrainPlan(
        samples=len(images.files),
        batch_size=settings.train.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=settings.seed,
        image_size=settings.data.image_size,
        crop_scale=augmentation.crop_scale,
        aspect_ratio=augmentation.crop_ratio,
        flip=augmentation.flip,
        crop_ratio=settings.data.crop_ratio,
        repeats=augmentation.repeats,
        left_out=images.left_out,
        accumulation=settings.train.accumulation,
    )

    def of_size(size: int) -> Any:
        return _loader(config, images, dataclasses.replace(plan, image_size=size), ranks, augmentation.interpolation)

    if augmentation.progressive is None:
        return of_size(plan.image_size), plan.batches(0)
    sizes = functools.partial(training_size, augmentation, settings.data)
    return ProgressiveLoader(of_size, sizes), plan.batches(0)


def training_size(augmentation: Augmentation, data: DataSettings, epoch: int) -> int:
    """Side of the training images in an epoch, in pixels; InputError for a size that does not grow."""
    if augmentation.progressive is None:
        return data.image_size
    start, begin, until = augmentation.progressive
    try:
        return ramp(epoch, start=start, end=data.image_size, begin=begin, until=until)
    except DataError as error:
        raise InputError(f"augmentation.progressive: {error}") from None


def evaluation_plan(
    data: DataSettings, images: ImageSet, ranks: Ranks, *, border: int = 0, more_sizes: tuple[int, ...] = ()
) -> EvaluationPlan:
    """Every image once, in batches of one shape. border, more_sizes: as in EvaluationPlan."""
    return EvaluationPlan(
        samples=len(images.files),
        batch_size=min(data.eval_batch_size, len(images.files)),
        rank=ranks.rank,
        world_size=ranks.world_size,
        image_size=data.eval_size,
        crop_ratio=data.crop_ratio,
        border=border,
        more_sizes=more_sizes,
    )


def evaluation_loader(config: Config, data: DataSettings, images: ImageSet, ranks: Ranks, **more: Any) -> Any:
    """The loader of an `evaluation_plan`."""
    plan = evaluation_plan(data, images, ranks, **more)
    return _loader(config, images, plan, ranks, data.eval_interpolation)


def _loader(config: Config, images: ImageSet, plan: Any, ranks: Ranks, interpolation: str) -> Any:
    given = {"image_set": images, "plan": plan, "output_device": ranks.device, "interpolation": interpolation}
    return build(config["loader"], "loader", **given)


def train_transform(config: Config, settings: Settings, precision: Precision) -> Transform:
    """uint8 batch -> normalised, mixed, erased batch and its targets."""
    return Transform(
        build(config["augmentation"], "augmentation"),
        mean=settings.data.mean,
        std=settings.data.std,
        num_classes=settings.data.num_classes,
        seed=settings.seed,
        dtype=precision.parameters,
    )


def evaluation_transform(data: DataSettings, precision: Precision) -> Callable[[Tensor], Tensor]:
    """uint8 batch -> normalised batch."""
    return functools.partial(normalize, mean=data.mean, std=data.std, dtype=precision.parameters)
