"""What evaluate.py runs: complete the configuration from the checkpoint's own, check it, evaluate on every rank."""

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from cotnet import parts, records
from cotnet.commands import eval_model
from cotnet.commands.joining import joined
from cotnet.config import run_folder
from cotnet.config.build import convert, require_group, shown, typed
from cotnet.config.compose import Config
from cotnet.engine.compilation import compiled, require_compiler
from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import Interrupted, evaluate
from cotnet.engine.launch import count_ranks, launch
from cotnet.engine.precision import Precision
from cotnet.engine.signals import StopRequest
from cotnet.engine.state import Checkpoint
from cotnet.errors import INTERRUPTED, InputError
from cotnet.models.fusing import fuse
from cotnet.parts import check_keys
from cotnet.reporting.terminal import evaluation_bar, say
from cotnet.settings import DataSettings, EvaluateSettings, LaunchSettings
from data.sets.read import read_split

KEYS = {*(field.name for field in fields(EvaluateSettings)), "backbone", "data", "loader", "launch"}


def run(config: Config) -> int:
    """Completes the configuration from the checkpoint's, checks it, evaluates on every rank."""
    config, checkpoint, ranks = checked(config)
    folder = Path(config["output_dir"])
    with run_folder.claimed(folder):
        run_folder.write_config(folder / "evaluation.yaml", config)
        code = launch(worker, config, ranks)
    better = eval_model.better_weights(config, checkpoint)
    if code == 0 and better:
        say(f"in training its {better} weights were the better ones; add weights={better} for them")
    return code


def checked(config: Config) -> tuple[Config, Checkpoint, int]:
    """The completed configuration, the checkpoint (empty for published weights) and the number of ranks.

    Raises:
        InputError: a setting, the checkpoint or the images are wrong.
    """
    check_keys(config, KEYS)
    for key in ("data", "loader", "launch"):
        require_group(config[key], key)
    config = {**config, "checkpoint": checkpoint_file(config["checkpoint"])}
    for field in fields(EvaluateSettings):
        if field.name == "precision":  # checked for this device by choose_precision
            continue
        convert(config[field.name], field.type, field.name)
    checkpoint = eval_model.own_checkpoint(config)
    config = eval_model.completed(config, checkpoint)
    if config["compile"]:
        require_compiler(torch.device("cuda" if torch.cuda.is_available() else "cpu"), "compile")
    ranks = count_ranks(typed(LaunchSettings, config["launch"], "launch").ranks)
    parts.check_loader(config)
    data = typed(DataSettings, config["data"], "data")
    eval_model.load_model(config, checkpoint)
    eval_model.check_classes(config, read_split(data.root, "val"))
    return config, checkpoint, ranks


def checkpoint_file(given: object) -> str:
    """The path of the checkpoint; for a run's folder, of its best checkpoint.

    Raises:
        InputError: not a path, or a run without a best checkpoint.
    """
    if not isinstance(given, str | int) or isinstance(given, bool):
        raise InputError(
            f"checkpoint={shown(given)} must be one path; several, one after another: --multirun checkpoint=A.pt,B.pt"
        )
    best = Path(str(given)) / "checkpoints" / "best.pt"
    if best.parent.is_dir() and not best.is_file():
        raise InputError(f"checkpoint={given}: this run has no best checkpoint yet; give one of {best.parent}")
    return str(best if best.is_file() else given)


def worker(config: Config, store: dist.Store | None) -> int:
    """One rank of the evaluation; its exit code."""
    with joined(config, store) as (ranks, stop):
        try:
            figures = measure(config, ranks, stop)
        except Interrupted:
            stop.forward = True
            return INTERRUPTED
        if ranks.first:
            report(config, figures)
    return 0


def measure(config: Config, ranks: Ranks, stop: StopRequest) -> dict[str, Any]:
    """Top-1, top-5, loss, image count and speed over the val split; collective."""
    data = typed(DataSettings, config["data"], "data")
    precision = Precision(name=config["precision"], device=ranks.device, channels_last=config["channels_last"])
    precision.set_up_process()
    model = eval_model.load_model(config, eval_model.own_checkpoint(config))
    model = precision.to_device(fuse(model) if config["fuse"] else model)
    images = read_split(data.root, "val")
    loader = parts.evaluation_loader(config, data, images, ranks)
    started = time.perf_counter()
    try:
        with evaluation_bar(len(images.files), enabled=ranks.first and sys.stdout.isatty()) as advance:
            figures = evaluate(
                {"model": compiled(model) if config["compile"] else model},
                loader,
                samples=len(images.files),
                flip=data.eval_flip,
                prepare=parts.evaluation_transform(data, precision),
                precision=precision,
                ranks=ranks,
                stop=lambda: stop.received,
                advance=advance,
            )["model"]
    finally:
        loader.close()
    speed = figures["images"] / (time.perf_counter() - started)
    return {**figures, "images_per_second": speed, "weights": config["weights"]}


def report(config: Config, figures: dict[str, Any]) -> None:
    """Writes output_dir/metrics.json and prints a line."""
    path = Path(config["output_dir"]) / "metrics.json"
    records.write_json(path, figures)
    accuracy = f"top-1 {figures['top1']:.2f} %, top-5 {figures['top5']:.2f} %, loss {figures['loss']:.4f}"
    count = f"{figures['images']} images at {figures['images_per_second']:.0f} images/s"
    say(f"{config['checkpoint']} ({figures['weights']}): {accuracy} on {count} -> {path}")
