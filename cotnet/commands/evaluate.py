"""What evaluate.py runs: for each checkpoint complete the configuration from its own, then evaluate on every rank."""

import dataclasses
from dataclasses import fields
from pathlib import Path

import torch
from torch import distributed as dist

from cotnet import parts
from cotnet.commands import eval_model, eval_report
from cotnet.commands.eval_sets import read_sets, unlabelled, words_of
from cotnet.commands.eval_worker import Job, Leaf, measure
from cotnet.commands.joining import joined
from cotnet.config import run_folder
from cotnet.config.build import convert, require_group, typed
from cotnet.config.compose import Config
from cotnet.engine.compilation import require_compiler
from cotnet.engine.evaluation import Interrupted
from cotnet.engine.launch import count_ranks, launch
from cotnet.engine.outside import first_process
from cotnet.errors import FAILED, INTERRUPTED
from cotnet.evaluation.predictions import require_parquet
from cotnet.models.weights import to_bytes
from cotnet.parts import check_keys
from cotnet.reporting.terminal import say
from cotnet.settings import EvaluateSettings, EvaluationData, LaunchSettings

GROUPS = ("backbone", "data", "loader", "suite", "launch", "average")
KEYS = {*(field.name for field in fields(EvaluateSettings)), *GROUPS}


def run(config: Config) -> int:
    """Evaluates every checkpoint on every set at every size; the largest exit code."""
    config, paths = checked(config)
    folder, average = Path(config["output_dir"]), eval_model.average_images(config["average"])
    groups = [paths] if average else [[path] for path in paths]
    names = eval_model.short_names(paths) if len(groups) > 1 else [""]
    code = 0
    with run_folder.claimed(folder):
        for name, group in zip(names, groups, strict=True):
            code = max(code, _run_one(config, group, folder / name, average))
            if code == INTERRUPTED:
                return code
        if first_process() and len(groups) > 1:
            eval_report.compare_all(folder, names)
    return code


def checked(config: Config) -> tuple[Config, list[Path]]:
    """The configuration and the checkpoints' files, after every check that needs no checkpoint.

    Raises:
        InputError: a setting is wrong, or a checkpoint does not exist.
    """
    check_keys(config, KEYS)
    for key in ("data", "loader", "launch"):
        require_group(config[key], key)
    for field in fields(EvaluateSettings):
        if field.name not in ("precision", "checkpoint"):  # choose_precision and checkpoint_files check these
            convert(config[field.name], field.type, field.name)
    if config["images"] is not None:
        unlabelled(config["images"], classes=1)
    eval_model.average_images(config["average"])
    if "parquet" in config["predictions"]:
        require_parquet()
    config = eval_model.separated(config)
    typed(EvaluationData, config["evaluation_data"], "data")
    count_ranks(typed(LaunchSettings, config["launch"], "launch").ranks)
    if config["compile"]:
        require_compiler(torch.device("cuda" if torch.cuda.is_available() else "cpu"), "compile")
    return config, eval_model.checkpoint_files(config["checkpoint"])


def _run_one(config: Config, group: list[Path], folder: Path, average: int | None) -> int:
    """One model: reads its checkpoint, checks that it fits, evaluates. `group`: several files to average."""
    read = eval_model.read(config, group)
    config, leaves = read.config, []
    ranks = count_ranks(typed(LaunchSettings, config["launch"], "launch").ranks)
    data = eval_model.data_settings(config)
    if average:
        parts.read_data(data)
    sets = read_sets(config, read.classes)
    several = len(sets) * len(config["sizes"]) > 1
    for one in sets:
        for size in config["sizes"]:
            name = "/".join([one.name] * (len(sets) > 1) + [str(size)] * (len(config["sizes"]) > 1))
            inputs = {
                "weights_checksum": read.checksum,
                "image_set": one.images.fingerprint,
                "settings": eval_report.settings(config, dataclasses.replace(data, eval_size=size), one),
            }
            leaves.append(Leaf(set=one.name, size=size, folder=str(folder / name), inputs=inputs))
    if first_process():
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_config(folder / "evaluation.yaml", {k: v for k, v in config.items() if k not in INTERNAL})
    open_leaves = [leaf for leaf in leaves if not (several and eval_report.done(leaf))]
    job = Job(config=config, leaves=open_leaves, weights=to_bytes(read.model), classes=read.classes, average=average)
    del read.model
    code = launch(worker, job, ranks) if open_leaves else 0
    if code not in (0, FAILED):
        return code
    if first_process():
        eval_report.summarise(config, folder, leaves)
        if read.better:
            say(f"in training its {read.better} weights were the better ones; add weights={read.better} for them")
    return code


INTERNAL = ("evaluation_data", "sizes", "own_checkpoint")


def worker(job: Job, store: dist.Store | None) -> int:
    """One rank of the evaluation; its exit code."""
    config = job.config
    code = 0
    with joined(config, store) as (ranks, stop):
        try:
            for leaf, found in measure(job, ranks, stop):
                if found is not None:
                    names = words_of(config, job.classes)
                    code = max(code, eval_report.write(config, leaf, found, *names))
        except Interrupted:
            stop.forward = True
            return INTERRUPTED
    return code
