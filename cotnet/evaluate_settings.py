"""The settings of evaluate.py. Default values are in conf/evaluate.yaml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cotnet.settings import ChannelsLast, Compile, Precision, Section, setting


@dataclass(frozen=True, kw_only=True)
class EvaluationData(Section):
    """The keys of `data` that evaluate.py has beside those of DataSettings; `data.eval_size` may be a list there."""

    preprocessing: Literal["own", "checkpoint"] | None = setting(
        "`own`: size, crop, filter, mean and std of torchvision's or timm's model; `checkpoint`: those of the "
        "checkpoint's configuration; null: `own` for published weights of these libraries, else `checkpoint`"
    )
    classes: Literal["all", "subset"] = setting(
        "`subset`: the val split may hold only some of the model's classes, found by their names"
    )
    allow_missing: bool = setting("exit 0 though images do not decode; the figures say how many are missing")


@dataclass(frozen=True, kw_only=True)
class AverageSettings(Section):
    """`average` of evaluate.py; `average=true` means 10,000 images."""

    images: int | None = setting(
        "evaluate the mean of the checkpoints' weights, with BatchNorm statistics of so many training images", least=1
    )


@dataclass(frozen=True, kw_only=True)
class SuiteSettings(Section):
    """`suite` of evaluate.py."""

    sets: tuple[str, ...] = setting("the sets to evaluate: imagenet, real, v2, a, r, sketch, c, objectnet")
    root: Path | None = setting(
        "the folder that holds the sets under their archives' names, or of one set; null: only the val split is needed"
    )
    images: int | None = setting("evaluate so many images of each set, chosen by a hash of their names", least=1)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Section):
    """The keys of evaluate.py beside the groups `backbone`, `data`, `loader`, `suite` and `launch`. Null: as in
    training."""

    checkpoint: Path | tuple[Path, ...] = setting(
        "a checkpoint, a file of published weights, an exported `.onnx` file, a run's folder for its "
        "`best.pt`, a folder of runs, or a list"
    )
    weights: Literal["ema", "raw"] = setting("the averaged weights, or those of the last step")
    recipe: str | None = setting(
        "of published weights of a detector or segmenter: the experiment whose model they are of, with backbone=NAME"
    )
    output_dir: str = setting("folder of the results; null: `outputs/evaluation/` and a name made of the overrides")
    precision: Precision | None = setting("as `train.precision`")
    channels_last: ChannelsLast | None = setting("as `train.channels_last`")
    compile: Compile = setting("`torch.compile` of the model, as `train.compile`")
    fuse: bool = setting("fold BatchNorm into the convolution before it: faster; results differ in their last digits")
    images: Path | tuple[Path, ...] | None = setting(
        "a folder or list of images without labels: predictions alone, no accuracy"
    )
    predictions: tuple[Literal["csv", "parquet", "imagenet_x"], ...] = setting("files of the table of predictions")
    certificate: bool = setting(
        "also evaluate through PIL, torchvision's tensors and DALI: what the loader costs in accuracy"
    )
    look: int = setting(
        "pictures of where the network looks, of the most confident mistakes; 0: none", least=0, most=100
    )
