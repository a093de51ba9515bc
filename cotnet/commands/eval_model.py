"""The model to evaluate: a checkpoint with its own configuration, published weights, or the mean of several files."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cotnet import image_parts, parts
from cotnet.commands.library_preprocessing import EXTERNAL, PREPROCESSING, difference, in_force
from cotnet.config.build import convert, require_group, shown, typed
from cotnet.config.compose import Config, compose
from cotnet.config.moves import stored_config
from cotnet.engine import checkpoints
from cotnet.engine.precision import choose_precision
from cotnet.errors import InputError
from cotnet.evaluate_settings import AverageSettings, EvaluationData
from cotnet.evaluation.preprocessing import own_preprocessing
from cotnet.integrity import checksum
from cotnet.models.table import native_evaluation
from cotnet.models.weights import load_weights
from cotnet.settings import DataSettings

FORM = ("channels_last", "compile", "fuse")  # how the model is run
AVERAGE_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The W&B run that a checkpoint is of, and the run's folder."""

    run_id: str
    folder: Path


@dataclass(kw_only=True)
class EvaluatedModel:
    """What is known of a checkpoint once it is read."""

    model: nn.Module
    config: Config  # completed
    checksum: str  # of the weights
    classes: tuple[str, ...] | None  # of the training set; None for published weights and older checkpoints
    better: str | None  # `raw` or `ema` if those were better in training and the others are evaluated
    trained: list[TrainingRun]  # of each file that knows one
    lines: list[str]  # for people, about the preprocessing


def checkpoint_files(given: object) -> list[Path]:
    """The files that `checkpoint` means: a file, a run's best.pt, the best.pt of each run in a folder, or a list.

    Raises:
        InputError: not a path, or nothing there.
    """
    if isinstance(given, list | tuple):
        if not given:
            raise InputError("checkpoint=[] is empty; give at least one path")
        return [file for one in given for file in checkpoint_files(one)]
    path = convert(given, Path, "checkpoint")
    checkpoint_folder = path / "checkpoints"
    if checkpoint_folder.is_dir():
        if not (checkpoint_folder / "best.pt").is_file():
            raise InputError(
                f"checkpoint={given}: this run has no best checkpoint yet; give one of {checkpoint_folder}"
            )
        return [checkpoint_folder / "best.pt"]
    runs = sorted(path.glob("*/checkpoints/best.pt"))
    return runs or [path]


def short_names(paths: Sequence[Path]) -> list[str]:
    """A folder name for each checkpoint: the parts of its path in which it differs from the others.

    Raises:
        InputError: a checkpoint is given twice.
    """
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise InputError(f"checkpoint: {twice[0]} is given twice; name each one once")
    parts_of = [path.with_suffix("").parts for path in paths]
    names = ["-".join(part for part in own if any(part not in other for other in parts_of)) for own in parts_of]
    names = [name.replace("/", "").replace("checkpoints-", "") or "checkpoint" for name in names]
    return [f"{name}-{place}" if names.count(name) > 1 else name for place, name in enumerate(names)]


def average_images(given: object) -> int | None:
    """`average.images`; 10,000 for `average=true`; None: no averaging."""
    if isinstance(given, bool):
        return AVERAGE_IMAGES if given else None
    require_group(given, "average")
    return typed(AverageSettings, given, "average").images


def read(config: Config, group: Sequence[Path]) -> EvaluatedModel:
    """Reads the checkpoint, completes the configuration from its own, builds the model with its weights. Several
    files: the mean of their weights.

    Raises:
        InputError: a file cannot be read or does not fit, or a setting is wrong.
    """
    first: EvaluatedModel | None = None
    total: dict[str, torch.Tensor] = {}
    for path in group:
        own = {**config, "checkpoint": str(path)}
        checkpoint = own_checkpoint(own)
        completed_config = completed(own, checkpoint) if first is None else {**first.config, "checkpoint": str(path)}
        parts.check_loader(completed_config)
        model = load_model(completed_config, checkpoint)
        if first is None:
            names = checkpoint.get("classes")
            first = EvaluatedModel(
                model=model,
                config=completed_config,
                checksum="",
                classes=None if names is None else tuple(names),
                better=better_weights(completed_config, checkpoint) if len(group) == 1 else None,
                trained=[],
                lines=preprocessing_lines(completed_config, stored_config(checkpoint) if checkpoint else None),
            )
        if run_id := checkpoint.get("progress", {}).get("run_id"):
            first.trained.append(TrainingRun(run_id=run_id, folder=path.absolute().parent.parent))
        for key, tensor in model.state_dict().items() if len(group) > 1 else ():
            wide = tensor.double() if tensor.is_floating_point() else tensor
            total[key] = total[key] + wide if key in total and tensor.is_floating_point() else wide
    assert first is not None
    if total:
        state = first.model.state_dict()
        mean = {
            key: (sum_ / len(group)).to(state[key]) if state[key].is_floating_point() else sum_
            for key, sum_ in total.items()
        }
        first.model.load_state_dict(mean)
        first.config["checkpoint"] = f"the mean of {', '.join(map(str, group))}"
    first.checksum = checksum(first.model.state_dict())
    return first


def separated(config: Config) -> Config:
    """The configuration with evaluate.py's own keys of `data` in `evaluation_data`."""
    own = {field.name for field in fields(EvaluationData)}
    extra = {key: value for key, value in config["data"].items() if key in own}
    data = {key: value for key, value in config["data"].items() if key not in own}
    return {"suite": None, "evaluation_data": extra, **config, "data": data}


def data_settings(config: Config) -> DataSettings:
    """`data` of a completed configuration; without a `root`, which a suite may not need, the working folder."""
    return image_parts.data_settings({**config["data"], "root": config["data"]["root"] or "."})


def own_checkpoint(config: Config) -> checkpoints.Checkpoint:
    """The checkpoint, or an empty dictionary for published weights, whose backbone must be named.

    Raises:
        InputError: the file cannot be read, or is no checkpoint of ours and no backbone is named.
    """
    path = Path(config["checkpoint"])
    try:
        return checkpoints.load(path)
    except InputError as error:
        if config.get("backbone") and path.exists():
            return {}
        ours = not path.exists() or "is damaged" in str(error)
        hint = "" if ours else "; for published weights name their model with backbone=NAME"
        raise InputError(f"{error}{hint}") from None


def completed(config: Config, checkpoint: checkpoints.Checkpoint, *, trained: Config | None = None) -> Config:
    """The configuration with nulls replaced by the checkpoint's values. For published weights: by those of
    conf/train.yaml, at the size and crop ratio of the backbone's published accuracy. For an exported file: by those of
    `trained`.

    `sizes`: the evaluation's sizes, of which `data.eval_size` is the first.
    """
    config = separated(config)
    own = {} if trained else _preprocessing(config, checkpoint)
    trained = trained or (stored_config(checkpoint) if checkpoint else _for_published(config))
    if parts.is_dense(trained):
        raise InputError(f"{config['checkpoint']} is a detector's or segmenter's; here only classifiers are read")
    data = {**trained["data"], **own}
    data |= {key: value for key, value in config["data"].items() if value is not None}
    given = convert(data["eval_size"], int | tuple[int, ...], "data.eval_size")
    sizes = [given] if isinstance(given, int) else list(given)
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"data.eval_size={shown(data['eval_size'])} must be a size, or a list of different sizes")
    for size in sizes:
        data_settings({"data": {**data, "eval_size": size}})
    if data["root"] is None and config["suite"] is None and config["images"] is None:
        raise InputError("data.root is required; set data.root=DIR")
    data["eval_size"] = sizes[0]
    loader = {key: value for key, value in config["loader"].items() if value is not None}
    backbone = dict(config.get("backbone") or trained["backbone"])
    backbone["num_classes"] = backbone.get("num_classes") or data["num_classes"]
    if "image_size" in backbone:  # of the position tables
        backbone["image_size"] = backbone["image_size"] or data["image_size"]
    form = {key: config[key] for key in FORM}
    if form["fuse"] and not parts.is_ours(backbone):
        raise InputError("fuse=true is for this project's own backbones; set fuse=false")
    if form["channels_last"] is None:
        form["channels_last"] = trained["train"].get("channels_last", False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        **config,
        "data": data,
        "sizes": sizes,
        "own_checkpoint": bool(checkpoint),
        "backbone": backbone,
        "loader": loader if "_target_" in loader else {**trained["loader"], **loader},
        "precision": choose_precision(config["precision"] or trained["train"]["precision"], device, key="precision"),
        **form,
    }


def _for_published(config: Config) -> Config:
    """conf/train.yaml at the size and crop ratio of the backbone's published accuracy."""
    name = str(config["backbone"].get("_target_")).rpartition(".")[2]
    size = config["data"]["eval_size"]
    native = native_evaluation(name, size if isinstance(size, int) else None)
    sizes = {} if native is None else {"image_size": native[0], "eval_size": native[0], "crop_ratio": native[1]}
    return compose("train", ["data.root=null", *(f"data.{key}={value}" for key, value in sizes.items())])


def _preprocessing(config: Config, checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    """The `data` settings of torchvision's or timm's model, if they are wanted."""
    wanted = config["evaluation_data"]["preprocessing"]
    backbone = config.get("backbone") or (stored_config(checkpoint)["backbone"] if checkpoint else {})
    library = str(backbone.get("_target_")).rpartition(".")[2]
    external = backbone.get("_target_") in EXTERNAL
    if wanted == "own" and not external:
        raise InputError("data.preprocessing=own is for torchvision's and timm's models; set it to checkpoint")
    if wanted == "checkpoint" or not external or (wanted is None and checkpoint):
        return {}
    return own_preprocessing(library, str(backbone["model_name"]), Path(config["checkpoint"]))


def preprocessing_lines(config: Config, trained: Config | None) -> list[str]:
    """For people: the preprocessing of a published external model, and what differs from that of `trained`, the
    configuration of a checkpoint or an exported file."""
    data, sizes = config["data"], config["sizes"]
    lines = []
    if trained is None and config["backbone"].get("_target_") in EXTERNAL:
        lines.append(in_force(config["backbone"]["model_name"], data))
    own = data if trained is None else trained["data"]
    for key in PREPROCESSING:
        given = own[key] if key == "eval_size" and own[key] in sizes else data[key]
        if given != own[key]:
            lines.append(difference(key, given, own[key], whose="the checkpoint's", remedy="leave it out"))
    return lines


def load_model(config: Config, checkpoint: checkpoints.Checkpoint) -> nn.Module:
    """The backbone with the file's averaged (`ema`) or `raw` weights."""
    model = parts.build_backbone({key: value for key, value in config["backbone"].items() if key != "weights"})
    path, averaged = Path(config["checkpoint"]), config["weights"] == "ema"
    if checkpoint:
        checkpoints.load_tensors(model, checkpoint["ema" if averaged else "model"], path)
    else:
        load_weights(model, path, ema=averaged)
    return model


def better_weights(config: Config, checkpoint: checkpoints.Checkpoint) -> str | None:
    """`raw` or `ema` if those weights made this checkpoint the best and the others are evaluated, else None."""
    progress = checkpoint.get("progress", {"best": {}})
    at_its_best = progress["best"] and progress["best"]["best_epoch"] == progress["epoch"]
    best = progress["best"]["best_weights"] if at_its_best else config["weights"]
    return None if best == config["weights"] else str(best)
