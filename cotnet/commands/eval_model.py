"""The model to evaluate: a checkpoint with its own configuration, or published weights."""

from pathlib import Path

import torch

from cotnet import parts
from cotnet.config.compose import Config, compose
from cotnet.config.moves import stored_config
from cotnet.engine import state as checkpoints
from cotnet.engine.precision import choose_precision
from cotnet.errors import InputError
from cotnet.models.table import native_evaluation
from cotnet.models.weights import load_weights
from data.sets.image_set import ImageSet

FORM = ("channels_last", "compile", "fuse")  # how the model is run


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


def completed(config: Config, checkpoint: checkpoints.Checkpoint) -> Config:
    """The configuration with nulls replaced by the checkpoint's values. For published weights: by those of
    conf/train.yaml, at the size and crop ratio of the backbone's published accuracy."""
    trained = stored_config(checkpoint) if checkpoint else _for_published(config)
    data = {**trained["data"], **{key: value for key, value in config["data"].items() if value is not None}}
    if data["root"] is None:
        raise InputError("data.root is required; set data.root=DIR")
    loader = {key: value for key, value in config["loader"].items() if value is not None}
    backbone = dict(config.get("backbone") or trained["backbone"])
    backbone["num_classes"] = backbone.get("num_classes") or data["num_classes"]
    if "image_size" in backbone:  # of the position tables
        backbone["image_size"] = backbone["image_size"] or data["image_size"]
    form = {key: config[key] for key in FORM}
    if form["fuse"] and backbone["_target_"].endswith("_model"):
        raise InputError("fuse=true is for this project's own backbones; set fuse=false")
    if form["channels_last"] is None:
        form["channels_last"] = trained["train"].get("channels_last", False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        **config,
        "data": data,
        "backbone": backbone,
        "loader": loader if "_target_" in loader else {**trained["loader"], **loader},
        "precision": choose_precision(config["precision"] or trained["train"]["precision"], device),
        **form,
    }


def _for_published(config: Config) -> Config:
    """conf/train.yaml at the size and crop ratio of the backbone's published accuracy."""
    name = str(config["backbone"].get("_target_")).rpartition(".")[2]
    native = native_evaluation(name, config["data"]["eval_size"])
    sizes = {} if native is None else {"image_size": native[0], "eval_size": native[0], "crop_ratio": native[1]}
    return compose("train", ["data.root=null", *(f"data.{key}={value}" for key, value in sizes.items())])


def load_model(config: Config, checkpoint: checkpoints.Checkpoint) -> torch.nn.Module:
    """The backbone with the file's averaged (`ema`) or `raw` weights."""
    model = parts.build_backbone({key: value for key, value in config["backbone"].items() if key != "weights"})
    path, averaged = Path(config["checkpoint"]), config["weights"] == "ema"
    if checkpoint:
        checkpoints.load_tensors(model, checkpoint["ema" if averaged else "model"], path)
    else:
        load_weights(model, path, ema=averaged)
    return model


def check_classes(config: Config, images: ImageSet) -> None:
    """Raises InputError if model and images have different numbers of classes."""
    theirs, ours = config["backbone"]["num_classes"], len(images.classes)
    if theirs != ours:
        raise InputError(
            f"{config['data']['root']} has {ours} classes, the model of {config['checkpoint']} {theirs}; "
            "evaluate it on images of its own classes"
        )


def better_weights(config: Config, checkpoint: checkpoints.Checkpoint) -> str | None:
    """`raw` or `ema` if those weights made this checkpoint the best and the others are evaluated, else None."""
    progress = checkpoint.get("progress", {"best": {}})
    at_its_best = progress["best"] and progress["best"]["best_epoch"] == progress["epoch"]
    best = progress["best"]["best_weights"] if at_its_best else config["weights"]
    return None if best == config["weights"] else str(best)
