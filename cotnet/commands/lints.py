"""Settings that are probably a mistake: one line each, with the remedy."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from torch import nn

from cotnet import parts
from cotnet.commands import library_preprocessing
from cotnet.config import recipes
from cotnet.config.build import build, shown
from cotnet.config.compose import Config, compose, flatten
from cotnet.engine.schedule import warmup_of
from cotnet.parts import read_settings
from cotnet.settings import Settings
from data.augmentation.policies import LARGEST, parse
from data.augmentation.settings import Augmentation

# What an accuracy depends on beside the weights.
EVALUATION: Final = ("data.eval_size", "data.crop_ratio", "data.eval_interpolation", "data.eval_flip")
COTNETS: Final = ("cotnet50", "cotnext50_2x48d", "se_cotnetd_50", "cotnet101", "cotnext101_2x48d", "se_cotnetd_101")
# GPUs that a recipe was trained on, where that is known: the column "GPUs" of docs/recipes.md.
GPUS: Final = {
    **{f"{name}_advanced": 8 for name in (*COTNETS, "se_cotnetd_152")},
    **dict.fromkeys(("se_cotnetd_152_320", "botnet50_100", "resnet50_100", "resnet50_torchvision"), 8),
    **dict.fromkeys(("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"), 8),
    **dict.fromkeys(("resnet50_ffcv_88", "resnet50_ffcv_16"), 8),
    **dict.fromkeys(("resnet50_a1", "resnet50_a2", "resnet50_a3"), 4),
}
# A part of the augmentation -> whether it is read, and what turns it off.
READ_IF: Final[dict[str, tuple[Callable[[Augmentation], object], str]]] = {
    "switch": (lambda a: a.mixup and a.cutmix, "mixup and cutmix are not both on"),
    "mix_by": (lambda a: a.mixup or a.cutmix, "mixup and cutmix are off"),
    "mix_epochs": (lambda a: a.mixup or a.cutmix, "mixup and cutmix are off"),
    "erasing_fill": (lambda a: a.erasing, "augmentation.erasing is 0"),
    "crop_ratio": (lambda a: a.crop_scale, "augmentation.crop_scale is null, the central crop"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before it starts; `steps` (per epoch and in all) are None where the number of images is not known.

    `recipe`: the name of the published recipe it is based on and that recipe's own configuration, if any. `ranks`: how
    many share the batch.
    """

    config: Config
    settings: Settings
    augmentation: Augmentation
    steps_per_epoch: int | None
    steps: int | None
    recipe: tuple[str, Config] | None
    ranks: int


def plan_of(config: Config, *, images: int | None, recipe: str | None, ranks: int = 1) -> Plan:
    """The plan of a configuration whose parts can be built: `images` to train on, the recipe it was composed from."""
    settings = read_settings(config)
    train, per_epoch, steps = settings.train, None, None
    if images is not None:
        per_epoch = images // train.batch_size
        steps = min(train.epochs * per_epoch, train.max_steps or train.epochs * per_epoch)
    return Plan(
        config=config,
        settings=settings,
        augmentation=build(config["augmentation"], "augmentation"),
        steps_per_epoch=per_epoch,
        steps=steps,
        recipe=None if recipe is None else (recipe, recipes.recipe(recipe)),
        ranks=ranks,
    )


def lints(plan: Plan) -> list[str]:
    """All lines about a run."""
    return [line for rule in RULES for line in rule(plan)]


def magnitude(plan: Plan) -> Iterator[str]:
    """A RandAugment magnitude beyond where its flavour ends."""
    name = plan.augmentation.policy
    policy = parse(name) if name else None
    largest = LARGEST.get(policy.flavour) if policy else None
    if policy and largest is not None and policy.magnitude > largest:
        other = "" if policy.flavour == "cot" else ", or take the flavour rand-cot, whose scale ends at 15"
        yield (
            f"augmentation.policy={name}: the magnitude of this flavour ends at {largest}, so m{policy.magnitude:g} "
            f"means m{largest}; write that{other}"
        )


def colour(plan: Plan) -> Iterator[str]:
    """Colour jitter beside a policy, which timm configures and does not do."""
    part = plan.augmentation
    if part.policy and part.color_jitter:
        yield (
            f"augmentation.color_jitter={part.color_jitter:g} acts beside the policy here; in timm, and so in the code "
            "of CoTNet and PVT, it does nothing beside RandAugment; set it to 0 to do as they do"
        )


def average(plan: Plan) -> Iterator[str]:
    """An exponential moving average that is longer than the run."""
    decay = plan.settings.train.ema_decay
    if plan.steps and plan.steps * (1 - decay) < 1:  # without a step the run is refused
        fitting = max(0.0, 1 - 10 / plan.steps)
        yield (
            f"train.ema_decay={decay:g} averages over the last {1 / (1 - decay):,.0f} steps, but the run has "
            f"{plan.steps:,}; use at most {fitting:.6g}, or train longer"
        )


def early_end(plan: Plan) -> Iterator[str]:
    """A run that `max_steps` ends before its schedule does."""
    last = plan.settings.train.max_steps
    if last is None or plan.steps_per_epoch is None or last >= plan.settings.train.epochs * plan.steps_per_epoch:
        return
    epochs = last / plan.steps_per_epoch
    warmup = warmup_of(plan.config["schedule"]["warmup_epochs"], epochs=plan.settings.train.epochs)
    if epochs <= warmup:
        yield (
            f"schedule.warmup_epochs={warmup:g}: train.max_steps={last} ends the run in its epoch {epochs:.3g}, within "
            f"the warm-up; lower one or raise the other"
        )
    else:
        whole = math.ceil(epochs)
        yield (
            f"train.max_steps={last} ends the run at epoch {epochs:.3g} of {plan.settings.train.epochs}, before the "
            f"learning rate has come down; set train.epochs={whole} to give the schedule that length"
        )


def late(plan: Plan) -> Iterator[str]:
    """What would begin after the end of the run."""
    epochs, part = plan.settings.train.epochs, plan.augmentation
    if part.progressive and part.progressive[2] > epochs:
        yield (
            f"augmentation.progressive={list(part.progressive)} has not reached data.image_size="
            f"{plan.settings.data.image_size} at the run's end after {epochs} epochs; end the growth earlier"
        )
    if part.mix_epochs is not None and part.mix_epochs >= epochs:
        yield f"augmentation.mix_epochs={part.mix_epochs} is not before the run's end at {epochs}; lower it or set null"
    for milestone in plan.config["schedule"].get("milestones", ()):
        if milestone >= epochs:
            yield f"schedule.milestones: {milestone:g} is not before the run's end at {epochs}; leave it out"


def unread(plan: Plan) -> Iterator[str]:
    """Settings that say something which nothing reads."""
    usual = _usual("augmentation", "none")
    for name, (is_read, reason) in READ_IF.items():
        value = plan.config["augmentation"][name]
        if value != usual[name] and not is_read(plan.augmentation):
            yield f"augmentation.{name}={shown(value)} is not read: {reason}; turn that on or leave this out"
    yield from _unread_rates(plan)
    backbone, train = plan.config["backbone"], plan.config["train"]
    if backbone.get("weights") is None and backbone.get("ema") is False:
        yield "backbone.ema=false is not read: backbone.weights is null; name a file or leave this out"
    if train["loss"] == "ce" and train["bce_threshold"] is not None:
        yield f"train.bce_threshold={train['bce_threshold']:g} is not read: train.loss=ce; set train.loss=bce or null"


def _unread_rates(plan: Plan) -> Iterator[str]:
    optimizer, schedule = plan.config["optimizer"], plan.config["schedule"]
    scaled = optimizer.get("lr_per_256", 0.0) * plan.settings.train.batch_size / 256
    if "lr_per_256" in optimizer and not math.isclose(optimizer["lr"], scaled):
        yield (
            f"optimizer.lr_per_256={optimizer['lr_per_256']:g} is not read: optimizer.lr={optimizer['lr']:g} is given, "
            f"not the {scaled:g} that would follow; optimizer.lr_per_256="
            f"{optimizer['lr'] * 256 / plan.settings.train.batch_size:g} says the same, and follows the batch"
        )
    name = schedule["_target_"].rpartition(".")[2]
    usual = _usual("schedule", name)
    for needed, setting in (("warmup_epochs", "warmup_start"), *([("cooldown_epochs", "end")] * (name == "step"))):
        if schedule[needed] == 0 and schedule[setting] != usual[setting]:
            yield f"schedule.{setting}={schedule[setting]:g} is not read: schedule.{needed} is 0; set that too"


@cache
def _usual(group: str, member: str) -> Config:
    return compose("train", [f"{group}={member}", "data.root=."])[group]


def published_evaluation(plan: Plan) -> Iterator[str]:
    """An evaluation other than the recipe's, whose accuracy then says nothing about this run's."""
    if plan.recipe is None:
        return
    name, theirs, ours = plan.recipe[0], flatten(plan.recipe[1]), flatten(plan.config)
    for key in EVALUATION:
        if ours[key] != theirs[key]:
            yield (
                f"{key}={shown(ours[key])}: experiment={name} evaluates with {shown(theirs[key])}; "
                "leave it out to compare with the published accuracy"
            )


def micro_batch(plan: Plan) -> Iterator[str]:
    """More images to a BatchNorm statistic and a mixing lambda than on the GPUs that the recipe was trained on."""
    if plan.recipe is None or plan.recipe[0] not in GPUS:
        return
    (name, recipe), train, mix = plan.recipe, plan.settings.train, plan.augmentation
    ours = train.batch_size // (plan.ranks * train.accumulation)
    theirs = recipe["train"]["batch_size"] // GPUS[name]
    if ours <= theirs:
        return
    parts = ["BatchNorm's statistics"] * (not train.sync_bn and _has_batchnorm(plan.config))
    parts += ["each lambda of mixup and CutMix"] * bool((mix.mixup or mix.cutmix) and mix.mix_by == "batch")
    if not parts:
        return
    accumulation, rest = divmod(train.batch_size, plan.ranks * theirs)
    remedy = f"set train.accumulation={accumulation} to do so here"
    if rest:
        remedy = f"train.batch_size={train.batch_size} is no multiple of that on {plan.ranks} ranks; change either"
    yield (
        f"{' and '.join(parts)}: over {ours} images, a rank's micro-batch; experiment={name} was trained on "
        f"{GPUS[name]} GPUs, over {theirs}; {remedy}"
    )


def own_preprocessing(plan: Plan) -> Iterator[str]:
    """Weights of timm or torchvision that were trained with another preprocessing."""
    yield from library_preprocessing.differences(plan.config)


def _has_batchnorm(config: Config) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return any(isinstance(module, kinds) for module in parts.on_meta(config["backbone"]).modules())


def differences(plan: Plan) -> list[str]:
    """The settings that are not the recipe's, as `key=value (recipe's value)`."""
    if plan.recipe is None:
        return []
    return [
        f"{key}={shown(ours)} ({shown(theirs)})"
        for key, ours, theirs in recipes.differences(plan.config, plan.recipe[1])
    ]


RULES: Final = (
    magnitude,
    colour,
    average,
    early_end,
    late,
    unread,
    published_evaluation,
    micro_batch,
    own_preprocessing,
)
