"""Evaluate a checkpoint: `python evaluate.py checkpoint=PATH [key=value] ...` (conf/evaluate.yaml lists the keys)."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from cotnet import assembly, runs
from cotnet.config import INTERRUPTED, Config, entry, typed
from cotnet.engine import records
from cotnet.engine import state as checkpoints
from cotnet.engine.distributed import Ranks, StopRequest, join_ranks
from cotnet.engine.evaluation import Interrupted, evaluate
from cotnet.engine.launch import count_ranks, launch
from cotnet.engine.precision import Precision, choose_precision
from cotnet.engine.terminal import evaluation_bar, say
from cotnet.errors import InputError
from data.samples import read_split

KEYS = {"checkpoint", "weights", "output_dir", "precision", "backbone", "data", "loader", "launch"}


@entry("evaluate", after_sweep=runs.print_sweep)
def main(config: Config) -> int:
    """Complete the configuration from the checkpoint's own, check it, evaluate on every rank."""
    assembly.check_keys(config, KEYS)
    if config["weights"] not in ("ema", "raw"):
        raise InputError(f"weights={config['weights']} is unknown; valid: ema, raw")
    checkpoint = checkpoints.load(Path(config["checkpoint"]))
    config = completed(config, json.loads(checkpoint["config"]))
    ranks = count_ranks(typed(assembly.LaunchSettings, config["launch"], "launch").ranks)
    assembly.check_loader(config)
    data = typed(assembly.DataSettings, config["data"], "data")
    load_model(config, checkpoint)
    assembly.check_classes(data, read_split(data.root, "val"))
    folder = Path(config["output_dir"])
    with runs.claimed(folder):
        return launch(worker, config, ranks)


def completed(config: Config, trained: Config) -> Config:
    """The evaluation's configuration, with the checkpoint's own values where it says null."""
    data = {**trained["data"], **{key: value for key, value in config["data"].items() if value is not None}}
    backbone = dict(config.get("backbone") or trained["backbone"])
    backbone["num_classes"] = backbone.get("num_classes") or data["num_classes"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        **config,
        "data": data,
        "backbone": backbone,
        "loader": config.get("loader") or trained["loader"],
        "precision": choose_precision(config["precision"] or trained["train"]["precision"], device),
    }


def load_model(config: Config, checkpoint: checkpoints.Checkpoint) -> torch.nn.Module:
    """The configuration's backbone with the checkpoint's weights: `ema`, or `raw` for those of the last step."""
    model = assembly.build_backbone({key: value for key, value in config["backbone"].items() if key != "weights"})
    tensors = checkpoint["ema" if config["weights"] == "ema" else "model"]
    checkpoints.load_tensors(model, tensors, Path(config["checkpoint"]))
    return model


def worker(config: Config, store: dist.Store | None) -> int:
    """One rank of the evaluation; its exit code."""
    with StopRequest() as stop, join_ranks(store) as ranks, assembly.plain_errors(config["output_dir"]):
        try:
            figures = measure(config, ranks, stop)
        except Interrupted:
            return INTERRUPTED
        if ranks.first:
            report(config, figures)
    return 0


def measure(config: Config, ranks: Ranks, stop: StopRequest) -> dict[str, Any]:
    """Top-1, top-5, loss, image count and speed over the val split; collective."""
    data = typed(assembly.DataSettings, config["data"], "data")
    precision = Precision(name=config["precision"], device=ranks.device)
    model = load_model(config, checkpoints.load(Path(config["checkpoint"]))).to(ranks.device, precision.parameters)
    images = read_split(data.root, "val")
    loader = assembly.evaluation_loader(config, data, images, ranks)
    started = time.perf_counter()
    try:
        with evaluation_bar(len(images.files), enabled=ranks.first and sys.stdout.isatty()) as advance:
            figures = evaluate(
                {"model": model},
                loader,
                samples=len(images.files),
                prepare=assembly.evaluation_transform(data, precision),
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
    """output_dir/metrics.json, and a line for the person."""
    path = Path(config["output_dir"]) / "metrics.json"
    records.write_json(path, figures)
    accuracy = f"top-1 {figures['top1']:.2f} %, top-5 {figures['top5']:.2f} %, loss {figures['loss']:.4f}"
    count = f"{figures['images']} images at {figures['images_per_second']:.0f} images/s"
    say(f"{config['checkpoint']} ({figures['weights']}): {accuracy} on {count} -> {path}")


if __name__ == "__main__":
    main()
