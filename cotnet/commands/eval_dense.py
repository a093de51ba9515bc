"""What evaluate.py runs for a detector or a segmenter: the same exact evaluation, COCO's figures or the mean IoU."""

import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from cotnet import dense_parts, parts
from cotnet.commands import eval_logger
from cotnet.commands.dense_report import draw_pictures, write
from cotnet.commands.eval_model import TrainingRun, own_checkpoint, short_names
from cotnet.commands.joining import joined
from cotnet.commands.train_dense import score
from cotnet.config import run_folder
from cotnet.config.claims import claimed
from cotnet.config.compose import Config, compose
from cotnet.config.moves import stored_config
from cotnet.dense.settings import DenseData
from cotnet.engine import checkpoints
from cotnet.engine.determinism import set_algorithms
from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import Interrupted
from cotnet.engine.launch import count_ranks, launch
from cotnet.engine.precision import Precision, choose_precision, is_channels_last
from cotnet.engine.rank_environment import first_process
from cotnet.engine.signals import StopRequest
from cotnet.errors import INTERRUPTED, InputError
from cotnet.integrity import checksum
from cotnet.models.weights import from_bytes, to_bytes
from cotnet.pages.folders import try_report
from cotnet.reporting.environment import device_name
from cotnet.reporting.terminal import evaluation_bar, say

# Keys of evaluate.py that are for classifiers, with the value that leaves each out.
NOT_HERE = {
    "suite": None,
    "images": None,
    "average": {"images": None},
    "certificate": False,
    "fuse": False,
    "predictions": ["csv"],
    "data.preprocessing": None,
    "data.classes": "all",
    "data.allow_missing": False,
}


@dataclass(frozen=True, kw_only=True)
class DenseJob:
    """What every rank gets. `config`: a training configuration with the evaluation's settings in it."""

    config: Config
    weights: bytes
    told: dict[str, Any]  # for metrics.json
    pictures: int
    run_id: str  # W&B's, of the training; empty if unknown


def run(config: Config, paths: list[Path]) -> int:
    """Evaluates every checkpoint on the val split; the largest exit code."""
    given = {**config, **{f"data.{key}": value for key, value in config["evaluation_data"].items()}}
    given["loader.device"] = config["loader"].get("device")
    for key, value in NOT_HERE.items():
        if given.get(key, value) != value:
            raise InputError(f"{key} is for classifiers; leave it out")
    if config["compile"] not in ("auto", False):
        raise InputError(f"compile={config['compile']}: detectors and segmenters are not compiled; leave it out")
    logs = eval_logger.logger_of(config) is not None
    folder, code = Path(config["output_dir"]), 0
    names = short_names(paths) if len(paths) > 1 else [""]
    with claimed(folder):
        for name, path in zip(names, paths, strict=True):
            place = folder / name
            job, ranks = prepared({**config, "checkpoint": str(path), "output_dir": str(place)})
            if first_process():
                place.mkdir(parents=True, exist_ok=True)
                run_folder.write_config(place / "evaluation.yaml", job.config)
            code = max(code, launch(worker, job, ranks))
            if code == INTERRUPTED:
                break
            if first_process() and (page := try_report(place)):
                say(f"to look at it: {page}")
            if first_process() and logs and code == 0:
                trained = [TrainingRun(run_id=job.run_id, folder=path.absolute().parent.parent)] if job.run_id else []
                eval_logger.log_dense_evaluation({**config, "checkpoint": str(path)}, place, trained=trained)
    return code


def prepared(config: Config) -> tuple[DenseJob, int]:
    """The checkpoint's model and completed configuration, and the number of ranks; writes nothing.

    Raises:
        InputError: the checkpoint, the images or a setting are wrong.
    """
    path, averaged = Path(config["checkpoint"]), config["weights"] == "ema"
    checkpoint = {} if config["recipe"] else own_checkpoint(config)
    trained = stored_config(checkpoint) if checkpoint else recipe_config(config)
    if not parts.is_dense(trained):
        raise InputError(f"{path} is a classifier's, others here are not; evaluate it by itself")
    if checkpoint and config.get("backbone"):
        raise InputError("backbone: the checkpoint has its own; leave it out, or name the recipe of published weights")
    whole = completed(config, trained)
    settings = dense_parts.settings_of(whole)
    ranks = count_ranks(settings.launch.ranks)
    images = dense_parts.read_set(settings, "val")
    model = dense_parts.build_model(whole, settings)
    if checkpoint:
        checkpoints.load_tensors(model, checkpoint["ema" if averaged else "model"], path)
    else:
        dense_parts.load_all(model, path, ema=averaged)
    told = {
        "task": dense_parts.name_of(settings.task),
        "head": settings.task.head,
        "weights": config["weights"],
        "checkpoint": str(path),
        "weights_checksum": checksum(model.state_dict()),
        "image_set": images.fingerprint,
        "data_root": str(settings.data.root.absolute()),
        "settings": {
            "eval_short_side": settings.data.eval_short_side,
            "eval_max_side": settings.data.eval_max_side,
            "eval_batch_size": settings.data.eval_batch_size,
            "precision": whole["train"]["precision"],
        },
    }
    run_id = checkpoint.get("progress", {}).get("run_id") or ""
    return DenseJob(config=whole, weights=to_bytes(model), told=told, pictures=config["look"], run_id=run_id), ranks


def recipe_config(config: Config) -> Config:
    """The training configuration that `recipe` names, for published weights."""
    if not config.get("backbone"):
        raise InputError("recipe wants the backbone of the published weights; set backbone=NAME")
    trained = compose("train", [f"experiment={config['recipe']}", "data.root=null", "output_dir=null"])
    if not parts.is_dense(trained):
        raise InputError(f"recipe={config['recipe']} is for classifiers; leave it out")
    classes = trained["data"]["num_classes"]
    return {**trained, "backbone": {**config["backbone"], "num_classes": config["backbone"]["num_classes"] or classes}}


def completed(config: Config, trained: Config) -> Config:
    """The training configuration with what evaluate.py's configuration says: data, loader, launch, precision."""
    known = {field.name for field in fields(DenseData)}
    given = {key: value for key, value in config["data"].items() if value is not None}
    if wrong := sorted(given.keys() - known):
        raise InputError(f"data.{wrong[0]} is for classifiers; a detector or segmenter has {', '.join(sorted(known))}")
    data = {**trained["data"], **given}
    if data["root"] is None:
        raise InputError("data.root is required; set data.root=DIR")
    loader = {key: value for key, value in config["loader"].items() if value is not None and key != "device"}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(config["precision"] or trained["train"]["precision"], device, key="precision")
    last = config["channels_last"]
    last = trained["train"]["channels_last"] if last is None else last
    return {
        **trained,
        "plugins": config.get("plugins", []),  # never the checkpoint's
        "output_dir": config["output_dir"],
        "data": data,
        "loader": {**trained["loader"], **loader},
        "launch": config["launch"],
        "backbone": {**trained["backbone"], "weights": None, "head": "keep"},
        "task": {**trained["task"], "weights": None},
        "train": {**trained["train"], "precision": precision, "channels_last": last, "compile": False},
    }


def worker(job: DenseJob, store: dist.Store | None) -> int:
    """One rank of the evaluation; its exit code."""
    with joined(job.config, store) as (ranks, stop):
        try:
            evaluate(job, ranks, stop)
        except Interrupted:
            stop.forward = True
            return INTERRUPTED
    return 0


def evaluate(job: DenseJob, ranks: Ranks, stop: StopRequest) -> None:
    """Evaluates on this rank's images; the first rank writes the files."""
    settings = dense_parts.settings_of(job.config)
    last = is_channels_last(settings.train.channels_last, ranks.device)
    precision = Precision(name=settings.train.precision, device=ranks.device, channels_last=last)
    precision.set_up_process()
    set_algorithms(ranks.device, deterministic=True)
    model = dense_parts.without_weights(parts.build_backbone(job.config["backbone"]), settings)
    from_bytes(model, job.weights)
    model = precision.to_device(model).eval()
    images = dense_parts.read_set(settings, "val")
    loader = dense_parts.evaluation_loader(job.config, settings, images, ranks)
    began = time.perf_counter()
    try:
        with evaluation_bar(len(images.files), enabled=ranks.first and sys.stdout.isatty()) as advance:
            how = {"precision": precision, "ranks": ranks, "stop": lambda: stop.received, "advance": advance}
            scored = score({"model": model}, settings.task, loader, images, **how)["model"]
    finally:
        loader.close()
    if ranks.first:
        seconds = time.perf_counter() - began
        speed = {"duration": seconds, "images_per_second": len(images.files) / seconds}
        told = {**job.told, **speed, "device": device_name(ranks.device)}
        draw_pictures(job.config, model, scored, images, count=job.pictures, precision=precision)
        write(Path(job.config["output_dir"]), scored, images, told)
