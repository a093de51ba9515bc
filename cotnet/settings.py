"""What a setting is, and the settings of `train`, `data`, `launch`, `checkpoint` and `optimizer`.

Default values are in conf/ only. Settings of other groups are declared where they are built.
"""

import operator
import types
import typing
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cotnet.errors import InputError

Precision = Literal["auto", "bf16", "fp16", "tf32", "fp32", "fp64"]
Interpolation = Literal["bilinear", "bicubic"]
ChannelsLast = bool | Literal["auto"]
Compile = bool | Literal["auto", "default", "reduce-overhead", "max-autotune"]

_LIMITS: Final = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


class Setting:
    """The meaning of a setting, with its unit, and its limits: `least` and `most` are allowed, `above` and `below` not.

    `off` is allowed outside the limits: it turns something off. A field is declared by `setting`, a parameter of a
    function by its type: `lr: Annotated[float, Setting("peak learning rate", above=0)]`.
    """

    def __init__(self, meaning: str, *, off: float | None = None, **limits: float) -> None:
        self.meaning, self.off, self.limits = meaning, off, limits

    @property
    def range(self) -> str:
        """The range in words: "above 0 and at most 1"; empty without limits."""
        words = " and ".join(f"{_LIMITS[name][0]} {number(limit)}" for name, limit in self.limits.items())
        if self.limits == {"above": 0}:
            words = "positive"
        if self.limits.keys() == {"least", "most"}:
            words = f"from {number(self.limits['least'])} to {number(self.limits['most'])}"
        return words if self.off is None else f"{number(self.off)}, which is off, or {words}"

    def refusal(self, name: str, value: Any, *, nullable: bool) -> str:
        """What is wrong with a number, or a list of numbers, for a person; empty if it is in the range, or null."""
        numbers = value if isinstance(value, tuple) else (value,)
        checks = (_LIMITS[kind][1](one, limit) for one in numbers for kind, limit in self.limits.items())
        if value in (None, self.off) or all(checks):
            return ""
        text = ",".join(map(number, numbers))
        text = f"[{text}]" if isinstance(value, tuple) else text
        return f"{name}={text} must be {self.range}{', or null' if nullable else ''}"


def setting(meaning: str, *, default: Any = MISSING, **limits: float) -> Any:
    """A field that is a Setting."""
    return field(default=default, metadata={"setting": Setting(meaning, **limits)})


@dataclass(frozen=True, kw_only=True)
class Section:
    """A group of settings that checks the range of each.

    Raises:
        ValueError: a value is out of range: `name=value must be ...`.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            declared, value = one.metadata.get("setting"), getattr(self, one.name)
            if declared and (line := declared.refusal(one.name, value, nullable=is_nullable(one.type))):
                raise ValueError(line)


def is_nullable(kind: Any) -> bool:
    """Whether a type allows null."""
    return types.NoneType in typing.get_args(kind)


def number(value: float) -> str:
    """A number as messages show it: 2.0 as 2."""
    return str(value).removesuffix(".0")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Section):
    """`train` of the configuration."""

    epochs: int = setting("passes over the training set", least=1)
    batch_size: int = setting("images per optimizer step, over all ranks and accumulation steps", least=1)
    precision: Precision = setting(
        "`auto`, `bf16`, `fp16` (with a loss scaler), `tf32` (GPUs of compute capability 8.0 and later), `fp32` "
        "(no TF32 anywhere) or `fp64`; `config.yaml` holds what `auto` chose"
    )
    channels_last: ChannelsLast = setting("memory format of images and kernels; `auto`: on a GPU")
    compile: Compile = setting(
        "`torch.compile` of the model in training, one graph per image size, in torch's mode `default` (also `true`), "
        "`reduce-overhead` or `max-autotune`; `auto`: `default` on a GPU, or not compiled if that fails, with a line "
        "that says so; validation runs the model itself"
    )
    deterministic: bool = setting(
        "on GPUs: algorithms whose results are the same bits every time, so that a continued run equals an uncut one; "
        "false: faster, and continuing may differ in the last bits"
    )
    checkpointing: tuple[Literal[1, 2, 3, 4], ...] = setting(
        "stages whose activations the backward pass computes again: less memory, same numbers"
    )
    accumulation: int = setting("micro-batches per rank and optimizer step", least=1)
    clip_norm: float | None = setting("largest norm of the gradient; not together with `train.clip_value`", above=0)
    clip_value: float | None = setting("largest absolute entry of the gradient", above=0)
    loss: Literal["ce", "bce"] = setting(
        "`ce`: cross-entropy; `bce`: binary cross-entropy per class, mean over images and classes"
    )
    bce_threshold: float | None = setting(
        "of `bce`: a mixed target above it counts as 1, below as 0; null keeps it soft", least=0, below=1
    )
    label_smoothing: float = setting("of the loss's targets", least=0, below=1)
    ema_decay: float = setting("of the averaged weights, reached through a warm-up; 0 disables EMA", least=0, below=1)
    sync_bn: bool = setting("BatchNorm statistics over the images of all ranks; GPUs only")
    log_every: int = setting("optimizer steps between two training records", least=1)
    max_steps: int | None = setting("end after so many optimizer steps in all", least=1)
    on_nonfinite: Literal["stop", "rollback"] = setting(
        "after a loss or gradient that is not finite: `stop` (exit 1), or `rollback` to the last checkpoint, leave out "
        "the batch and continue at a lower learning rate"
    )
    rollback_lr_factor: float = setting("factor of the learning rate after a rollback", above=0, most=1)
    max_rollbacks: int = setting("rollbacks before the run stops", least=1)
    max_minutes: float | None = setting(
        "end training after so many minutes, over all processes of the run (time lost to kill -9 is not counted); "
        "an evaluation and the last checkpoint follow",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError(f"clip_value={self.clip_value:g}: clip by norm or by value; set clip_norm or this to null")

    def check_batch(self, ranks: int, samples: int) -> None:
        """Raises InputError unless the batch fits the training set and divides into equal micro-batches."""
        if self.batch_size > samples:
            raise InputError(f"train.batch_size={self.batch_size} exceeds the {samples} training images; lower it")
        parts = ranks * self.accumulation
        if self.batch_size % parts:
            below = self.batch_size // parts * parts
            near = f"{below} or {below + parts}" if below else str(parts)
            where = f"{ranks} ranks x {self.accumulation} accumulation steps"
            raise InputError(f"train.batch_size={self.batch_size} is not divisible by {where}; use {near}")


@dataclass(frozen=True, kw_only=True)
class DataSettings(Section):
    """`data` of the configuration."""

    root: Path = setting("the folder that holds `train/` and `val/`, or a list or manifest of images")
    num_classes: int = setting("classes of the image set", least=1)
    image_size: int = setting("height and width of the training crop, in pixels", least=1)
    eval_size: int = setting("height and width of the evaluation crop, in pixels", least=1)
    eval_batch_size: int = setting("images per rank and evaluation step; changes no figure", least=1)
    crop_ratio: float = setting(
        "the shorter side is resized to `eval_size / crop_ratio` before the central crop",
        least=0.1,  # below, the resized images take much memory
        most=1,
    )
    eval_interpolation: Interpolation = setting("filter of that resize, antialiased")
    eval_flip: bool = setting("evaluate the mean of the logits of each image and its mirror image")
    mean: tuple[float, float, float] = setting("per channel, of images in [0, 1]")
    std: tuple[float, float, float] = setting("per channel, of images in [0, 1]", above=0)


@dataclass(frozen=True, kw_only=True)
class Pretrained(Section):
    """Which weights a backbone starts from: keys of `backbone`."""

    weights: Path | None = setting("a `.pth`, `.pt` or `.safetensors` file to start from", default=None)
    ema: bool = setting("of a file with both: the averaged weights, else those of the last step", default=True)
    head: Literal["keep", "reset"] = setting(
        "the classifier of that file: `keep` it, or `reset` it for other classes", default="keep"
    )


@dataclass(frozen=True, kw_only=True)
class LaunchSettings(Section):
    """`launch` of the configuration."""

    ranks: int | None = setting("processes; null: one per visible GPU, one without a GPU", least=1)
    timeout_minutes: float = setting("how long a rank waits for another before the run ends with a hint", above=0)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Section):
    """`checkpoint` of the configuration. The end of an epoch is always saved."""

    every_steps: int | None = setting("optimizer steps between two saves within an epoch", above=0)
    every_minutes: float | None = setting("minutes between two saves within an epoch", above=0)
    keep_every: int | None = setting("keep `epoch_NNNN.pt` of every n-th epoch", above=0)
    keep_top: int | None = setting("keep `epoch_NNNN.pt` of the best k epochs, by top-1, box AP or mIoU", above=0)


# Of torch's and timm's optimizers, and this project's own `lr_per_256` and `layer_decay`.
OPTIMIZER: Final[dict[str, Any]] = {
    "lr_per_256": Annotated[float, Setting("peak learning rate for a batch of 256", above=0)],
    "lr": Annotated[float, Setting("peak learning rate; default: `lr_per_256` x `train.batch_size` / 256", above=0)],
    "layer_decay": Annotated[
        float | None,
        Setting("each layer's rate is this times that of the layer after it; null: one rate", above=0, most=1),
    ],
    "weight_decay": Annotated[float, Setting("of weights; biases and norms have none", least=0)],
    "momentum": Annotated[float, Setting("decay of the running sum of gradients", least=0, most=1)],
    "nesterov": Annotated[bool, Setting("Nesterov's momentum")],
    "betas": Annotated[tuple[float, ...], Setting("decay of the gradient's averages", least=0, below=1)],
    "eps": Annotated[Any, Setting("added to the denominator")],
}


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Section):
    """`evaluation` of the configuration. The end of a run is always evaluated."""

    every: int = setting("epochs between two evaluations", least=1)
    extra: dict[str, int] | None = setting(
        "other sets to evaluate during training, each with the epochs between two evaluations: `{v2: 10, sketch: 30}`"
    )
    root: Path | None = setting("the folder that holds those sets, as `suite.root` of evaluate.py")


@dataclass(frozen=True, kw_only=True)
class RunSettings(Section):
    """The typed sections of a training configuration that every task has."""

    seed: int = setting("0 to 2**63 - 1: of weights, image order, augmentation, dropout and drop path")
    output_dir: str = setting(
        "the run's folder; null: `outputs/` and a name made of the overrides. Of a `--multirun`: the folder of the runs"
    )
    explain: bool = setting(
        "print and draw in `output_dir/explain/` what the run would be, and end: exit 0, or 2 if training is refused"
    )
    plugins: tuple[str, ...] = setting(
        "packages of your own whose functions and classes a `_target_` may name: `[mypackage]`; a checkpoint admits "
        "none",
        default=(),
    )
    train: TrainSettings
    launch: LaunchSettings
    checkpoint: CheckpointSettings
    evaluation: EvaluationSettings


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """The typed sections of a classifier's training configuration."""

    data: DataSettings
