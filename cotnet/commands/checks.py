"""What is checked before a run starts, and lines about it for people: train.py, explain=true and cotnet.doctor."""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from cotnet import image_parts, parts
from cotnet.commands.extra_sets import ExtraSets
from cotnet.commands.library_preprocessing import training_lines
from cotnet.config.compose import Config
from cotnet.engine.compilation import require_compiler
from cotnet.engine.gpus import require_usable_gpus
from cotnet.engine.launch import count_ranks
from cotnet.engine.precision import choose_precision
from cotnet.errors import InputError
from cotnet.reporting.terminal import say
from cotnet.settings import DataSettings, TrainSettings
from data.sets.image_set import ImageSet
from data.sets.read import class_words

Lines = Iterator[tuple[str, str]]


class Checked(NamedTuple):
    """A run that may begin. `config`: with its precision chosen; `image_set`: the training set's fingerprint; `lines`:
    for people."""

    config: Config
    ranks: int
    image_set: str
    lines: list[str | None]


def checked(config: Config) -> Checked:
    """A classifier's run.

    Raises:
        InputError: a setting or an image set is wrong, or this machine lacks what a setting needs.
    """
    require_usable_gpus()
    settings = parts.settings_of(config)
    parts.check_parts(config)
    ranks = count_ranks(settings.launch.ranks)
    train_set, val_set = image_parts.read_data(settings.data)
    settings.train.check_batch(ranks, len(train_set.files))
    ExtraSets(config, settings, val_set)
    chosen = {"precision": check_machine(settings.train)}
    config = {**config, "train": config["train"] | chosen}
    lines = [excluded_line(settings.data, train_set, val_set), unchecked_line(config, train_set)]
    lines += training_lines(config)
    return Checked(config, ranks, train_set.fingerprint, lines)


def excluded_line(data: DataSettings, train: ImageSet, val: ImageSet) -> str | None:
    """How many files of the splits are excluded, if any."""
    if not train.excluded and not val.excluded:
        return None
    counts = f"{train.excluded} train and {val.excluded} val files are excluded"
    return f"{data.root}: {counts}, for the reasons in {data.root / 'manifest.json'}"


def check_machine(train: TrainSettings) -> str:
    """The precision that `auto` stands for; raises InputError for a setting that needs what this machine lacks."""
    precision = choose_precision(train.precision, device())
    if train.sync_bn and device().type == "cpu":
        raise InputError("train.sync_bn=true needs GPUs; set train.sync_bn=false")
    if train.compile not in ("auto", False):
        require_compiler(device(), "train.compile", train.compile)
    return precision


def device() -> torch.device:
    """What a run here computes on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def show(*pages: Callable[[], Lines]) -> list[str]:
    """Prints the lines of pages, then the reasons why training would be refused, which pages raise; returns these."""
    refused: dict[str, None] = {}  # an ordered set
    for page in pages:
        try:
            for name, text in page():
                say(f"  {name:<14} {text}")
        except InputError as error:
            refused[str(error)] = None
    for line in refused:
        say(f"  REFUSED        {line}")
    return list(refused)


def machine_lines(config: Config, train: TrainSettings, ranks: int) -> Lines:
    """What the run would use of this machine."""
    require_usable_gpus()
    parts.check_loader(config)
    node = config["loader"]
    name = node["_target_"].rpartition(".")[2]
    decodes = "GPU" if decodes_on_gpu(config) else "CPU"
    cores = len(os.sched_getaffinity(0))
    advice = f"; more than the {cores} cores" if node["threads"] * ranks > cores else ""
    yield "loader", f"{name}, decodes on the {decodes}, {node['threads']} threads per rank{advice}"
    yield "logger", config["logger"]["_target_"].rpartition(".")[2]
    yield "device", f"{ranks} x {device().type}, {check_machine(train)}"


def decodes_on_gpu(config: Config) -> bool:
    """Whether a run here decodes images on a GPU."""
    node = config["loader"]
    return node["_target_"].endswith("DaliLoader") and node["device"] != "cpu" and device().type == "cuda"


def unchecked_line(config: Config, train: ImageSet) -> str | None:
    """A line for people if a GPU decodes images that were never checked, else None."""
    if train.sizes is not None or not decodes_on_gpu(config):
        return None
    check = f"python -m data.check {config['data']['root']}"
    return f"the images are not checked, and a GPU may decode a damaged one without an error: run {check} once"


def image_lines(data: DataSettings, train: ImageSet, val: ImageSet) -> Lines:
    """The images that the run would read."""
    excluded = train.excluded + val.excluded
    checks = "not checked (python -m data.check)" if train.sizes is None else f"checked, {excluded} excluded"
    yield "images", f"{len(train.files):,} to train on, {len(val.files):,} to evaluate, in {data.root}: {checks}"
    words = class_words(data.root, train.classes)
    yield "classes", f"{len(words)}: {', '.join(words[:4])}{', ...' if len(words) > 4 else ''}"
