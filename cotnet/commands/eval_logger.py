"""An evaluation as a W&B run of job type `eval`, linked to the run that made its weights.

It is made from the files that the evaluation left, so W&B can change no figure.
"""

import contextlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from cotnet.commands.eval_model import TrainingRun
from cotnet.commands.eval_report import METRICS
from cotnet.commands.eval_worker import Leaf
from cotnet.config.build import build, require_group
from cotnet.config.claims import claimed
from cotnet.config.compose import Config
from cotnet.errors import InputError
from cotnet.evaluation import predictions
from cotnet.evaluation.dense_files import PICTURES
from cotnet.evaluation.metrics import CONFUSIONS, PER_CLASS, confusions, per_class
from cotnet.evaluation.predictions import Predictions
from cotnet.reporting.wandb_evaluation import EvaluationContent
from cotnet.reporting.wandb_file import began_as
from cotnet.reporting.wandb_logger import NoLogger, WandbLogger

Names = tuple[Sequence[str], Sequence[str]]

TRAINING_ONLY: Final = {"artifacts": False, "save_code": False, "watch": None}
SHOWN: Final = 200  # images in the table of predictions
PAIRS: Final = 1000  # rows of the table of confusions
MATRIX_CLASSES: Final = 100  # a confusion matrix of more classes cannot be read


def logger_of(config: Config) -> WandbLogger | None:
    """The logger that `logger=` names; None without one.

    Raises:
        InputError: it shows no evaluations, or a setting is wrong, or the table that it shows is not written.
    """
    require_group(config["logger"], "logger")
    logger = build(config["logger"], "logger")
    if isinstance(logger, NoLogger):
        return None
    if not isinstance(logger, WandbLogger):
        raise InputError("logger: evaluate.py shows its results on W&B or nowhere; set logger=wandb or logger=none")
    if "csv" not in config["predictions"]:
        raise InputError("predictions: logger=wandb shows the images of predictions.csv; add csv")
    return logger


def is_logged(leaf: Leaf) -> bool:
    """Whether a W&B run of this evaluation was begun."""
    return (Path(leaf.folder) / "wandb").exists()


def group_of(config: Config, folder: Path, trained: Sequence[TrainingRun]) -> str:
    """The group of a model's evaluations in `folder` where neither `logger.group` nor a variable of W&B names one: that
    of the training run, else the name of the command's folder. Several models share one group."""
    top = Path(config["output_dir"])
    own = began_as(trained[0].folder, trained[0].run_id)[1] if folder == top and len(trained) == 1 else ""
    return own or top.absolute().name


def log_evaluation(
    config: Config, leaf: Leaf, *, images: Path, names: Names, trained: Sequence[TrainingRun], group: str
) -> None:
    """Makes the W&B run of one evaluation. What goes wrong at W&B is one line, and changes nothing else.

    images: the folder of the images. names: the model's classes, and what people call them. trained: the runs of the
    checkpoint's files. group: as group_of's.

    Raises:
        InputError: the evaluation's files cannot be read, or another process is showing them.
    """
    about = {"set": leaf.set, "size": leaf.size, "figures_depend_on": leaf.inputs}
    folder = Path(leaf.folder)
    with claimed(folder) if folder != Path(config["output_dir"]) else contextlib.nullcontext():
        found = content(folder, images=images, names=names, trained=trained)
        _send(config, folder, found, about=about, trained=trained, group=group)


def log_dense_evaluation(config: Config, folder: Path, *, trained: Sequence[TrainingRun]) -> None:
    """Makes the W&B run of a detector's or segmenter's evaluation in `folder`: figures, a table of its categories or
    classes, the pictures. config: evaluate.py's own, with its checkpoint. Otherwise as log_evaluation."""
    figures = json.loads((folder / METRICS).read_text())
    each = "categories" if "categories" in figures else "classes"
    rows = figures.pop(each)
    listed = json.loads((folder / PICTURES).read_text())["pictures"] if (folder / PICTURES).exists() else []
    found = EvaluationContent(
        figures=scalars(figures),
        root=folder,
        predictions=(),
        tables={each: (tuple(rows[0]), [list(row.values()) for row in rows])} if rows else {},
        pictures=[((folder / PICTURES).parent / one["png"], one["alt"]) for one in listed],
        training_run=_training_run(trained),
    )
    about = {"figures_depend_on": figures["settings"]}
    _send(config, folder, found, about=about, trained=trained, group=group_of(config, folder, trained))


def _send(
    config: Config,
    folder: Path,
    found: EvaluationContent,
    *,
    about: dict[str, Any],
    trained: Sequence[TrainingRun],
    group: str,
) -> None:
    """One W&B run in `folder`; `about`: of its configuration."""
    logger, top = build({**config["logger"], **TRAINING_ONLY}, "logger"), Path(config["output_dir"])
    runs = [one.run_id for one in trained]
    shown = {**config, **about, "training_run": runs[0] if len(runs) == 1 else runs or None}
    notes = f"Evaluation of {config['checkpoint']}" + (f", W&B run {', '.join(runs)}" if runs else "")
    name = "/".join([top.absolute().name, *folder.relative_to(top).parts])
    logger.start(
        folder, shown, secrets.token_hex(4), name, defaults={"job_type": "eval", "group": group, "notes": notes}
    )
    logger.evaluation(found)
    logger.finish(0)


def _training_run(trained: Sequence[TrainingRun]) -> tuple[str, str] | None:
    """W&B's id and project of the one run that made the weights; None if unknown."""
    project = began_as(trained[0].folder, trained[0].run_id)[0] if len(trained) == 1 else ""
    return (trained[0].run_id, project) if project else None


def content(folder: Path, *, images: Path, names: Names, trained: Sequence[TrainingRun]) -> EvaluationContent:
    """What W&B shows of the evaluation in `folder`; arguments as log_evaluation's."""
    figures = json.loads((folder / METRICS).read_text())
    table, (classes, words) = predictions.read(folder / "predictions.csv", labelled=False), names
    one_label = "top1" in figures and table.label_sets is None
    tables: dict[str, Any] = {}
    if one_label:
        tables["per_class"] = PER_CLASS, list(per_class(table, classes, words))
        tables["confusions"] = CONFUSIONS, list(confusions(table, classes, words))[:PAIRS]
    matrix = one_label and len(classes) <= MATRIX_CLASSES
    told_apart = words if len(set(words)) == len(words) else classes
    return EvaluationContent(
        figures=scalars(figures),
        root=images,
        predictions=telling_rows(table, words, labelled="top1" in figures),
        tables=tables,
        classes=told_apart if matrix else (),
        labels=table.labels.tolist(),
        predicted=table.best[:, 0].tolist(),
        reliability=figures.get("reliability", ()),
        training_run=_training_run(trained),
    )


def telling_rows(table: Predictions, words: Sequence[str], *, labelled: bool) -> list[list[Any]]:
    """At most SHOWN rows of file, label, top1, p1, correct: the most confident mistakes first, then the least confident
    right ones; without labels the least confident images."""
    right = table.correct if labelled else np.ones(len(table.files), dtype=bool)
    order = np.lexsort((np.where(right, table.confidence, -table.confidence), right))[:SHOWN]
    return [
        [
            table.files[row],
            words[table.labels[row]] if table.labels[row] >= 0 else None,
            words[table.best[row, 0]],
            float(table.confidence[row]),
            bool(right[row]) if labelled else None,
        ]
        for row in order.tolist()
    ]


def scalars(figures: dict[str, Any]) -> dict[str, Any]:
    """The single values of metrics.json: an interval as `_low` and `_high`, a group's values as `group_name`, the
    number of missing images; without null. (W&B nests names with a dot.)"""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if name.endswith("_interval"):
            key = name.removesuffix("_interval")
            found |= {f"{key}_low": value[0], f"{key}_high": value[1]}
        elif name == "missing":
            found[name] = len(value)
        elif isinstance(value, dict) and name != "settings":
            found |= {f"{name}_{key}": one for key, one in value.items()}
        elif isinstance(value, int | float | str):
            found[name] = value
    return {name: value for name, value in found.items() if value is not None}
