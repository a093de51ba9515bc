"""What an evaluation leaves in its folder, and the lines it prints."""

import csv
import json
from collections.abc import Sequence
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cotnet import records
from cotnet.commands.eval_worker import Found, Leaf
from cotnet.config.compose import Config
from cotnet.errors import FAILED, InputError
from cotnet.evaluation import comparison, predictions, suites
from cotnet.evaluation.certificate import certificate
from cotnet.evaluation.metrics import CONFUSIONS, PER_CLASS, confusions, metrics, per_class
from cotnet.evaluation.statistics import percent
from cotnet.evaluation.suites import EvaluationSet
from cotnet.reporting.terminal import say
from cotnet.settings import DataSettings

METRICS, COMPARISON = "metrics.json", "comparison.json"


def settings(config: Config, data: DataSettings, one: EvaluationSet) -> dict[str, Any]:
    """What the figures depend on beside the weights and the images."""
    return {
        "eval_size": data.eval_size,
        "crop_ratio": data.crop_ratio if one.resize else 1.0,
        "eval_interpolation": data.eval_interpolation,
        "eval_flip": data.eval_flip,
        "mean": list(data.mean),
        "std": list(data.std),
        "precision": config["precision"],
        "loader": config["loader"]["_target_"].rpartition(".")[2],
        "fuse": config["fuse"],
        "label_space": config["backbone"]["num_classes"] if one.columns is None else len(one.columns),
        "border": one.border,
    }


def done(leaf: Leaf) -> bool:
    """Whether the leaf's folder holds the figures of the same weights, images and settings."""
    path = Path(leaf.folder) / METRICS
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return bool(content.get("missing") == [] and {key: content.get(key) for key in leaf.inputs} == leaf.inputs)


def write(config: Config, leaf: Leaf, found: Found, classes: Sequence[str], words: Sequence[str]) -> int:
    """Writes one evaluation's files, metrics.json last; prints a line; its exit code."""
    folder, table, chosen = Path(leaf.folder), found.predictions, found.chosen
    folder.mkdir(parents=True, exist_ok=True)
    predictions.write_csv(
        folder / "classes.csv", ("number", "class", "words"), zip(range(len(classes)), classes, words, strict=True)
    )
    labelled = found.labelled
    predictions.write(table, folder, config["predictions"], words=() if labelled else words)
    names = [{"file": file, "reason": reason} for file, reason in found.missing.items()]
    figures: dict[str, Any] = {"images": len(table.files)}
    if labelled:
        if not len(table.files):
            raise InputError(f"{chosen.images.root}: none of its {len(chosen.images.files)} images decodes")
        figures = metrics(table)
    if labelled and chosen.label_sets is None:
        predictions.write_csv(folder / "per_class.csv", PER_CLASS, per_class(table, classes, words))
        predictions.write_csv(folder / "confusions.csv", CONFUSIONS, confusions(table, classes, words))
    if found.other_paths:
        records.write_json(folder / "certificate.json", certificate(found.other_paths))
    figures |= {
        **found.figures,
        "weights": config["weights"],
        "checkpoint": config["checkpoint"],
        "set": leaf.set,
        "images_in_set": len(chosen.images.files),
        "image_folder": str(chosen.images.root.absolute()),
        "classes": chosen.classes or "all",
        "missing": names,
        **leaf.inputs,
    }
    if reference := published(config, leaf):
        figures["published"] = reference
    if leaf.set.startswith("c/"):
        figures["top1_by_severity"] = by_severity(table)
        if leaf.size != suites.C_SIZE:
            figures["comparable"] = f"no: ImageNet-C's images have {suites.C_SIZE} px, these figures are at {leaf.size}"
    records.write_json(folder / METRICS, figures)
    say(_line(config, leaf, figures, labelled=labelled))
    return FAILED if names and not config["evaluation_data"]["allow_missing"] else 0


def by_severity(table: predictions.Predictions) -> dict[str, float]:
    """Top-1 in percent of each strength of a corruption, the first part of a file's path."""
    strengths = np.array([file.partition("/")[0] for file in table.files])
    return {one: percent(table.correct[strengths == one]) for one in sorted(set(strengths.tolist()))}


def _line(config: Config, leaf: Leaf, figures: dict[str, Any], *, labelled: bool) -> str:
    total, images = figures["images_in_set"], figures["images"]
    count = f"{images} images" if images == total else f"{images:,} of {total:,} images"
    speed = f"{count} at {figures['images_per_second']:.0f} images/s"
    what = f"{config['checkpoint']} ({config['weights']}), {leaf.set} at {leaf.size} px"
    where = Path(leaf.folder) / METRICS
    if not labelled:
        return f"{what}: {speed} -> {where.with_name('predictions.csv')}"
    low, high = figures["top1_interval"]
    loss = "" if figures["loss"] is None else f", loss {figures['loss']:.4f}"
    accuracy = f"top-1 {figures['top1']:.2f} % ({low:.2f} to {high:.2f}), top-5 {figures['top5']:.2f} %{loss}"
    some = "" if figures["classes"] == "all" else f", classes {figures['classes']}"
    close = [f"; published {one['top1']:.2f} % ({one['model']})" for one in figures.get("published", [])[:1]]
    gone = (
        f"; {len(figures['missing'])} do not decode, first {figures['missing'][0]['file']}"
        if figures["missing"]
        else ""
    )
    return f"{what}: {accuracy} on {speed}{some}{''.join(close)}{gone} -> {where}"


def published(config: Config, leaf: Leaf) -> list[dict[str, Any]]:
    """The published figures of models of this architecture on this set, at the same size, crop and filter (timm's
    results files)."""
    sets = {"val": "imagenet", "imagenet": "imagenet", "real": "imagenet-real", "v2": "imagenetv2-matched-frequency",
            "a": "imagenet-a", "r": "imagenet-r", "a-clean": "imagenet-a-clean", "r-clean": "imagenet-r-clean",
            "sketch": "sketch"}  # fmt: skip
    target = str(config["backbone"]["_target_"]).rpartition(".")[2]
    name = str(config["backbone"].get("model_name", target)).partition(".")[0]
    if config["backbone"]["num_classes"] != 1000 or leaf.set not in sets:
        return []
    used = leaf.inputs["settings"]
    rows = csv.DictReader(StringIO(suites.asset("reference_accuracies.csv").decode()))
    return [
        {"model": row["model"], "top1": float(row["top1"]), "top5": float(row["top5"] or "nan")}
        for row in rows
        if row["set"] == sets[leaf.set]
        and row["model"].partition(".")[0] == name
        and int(row["img_size"]) == leaf.size
        and abs(float(row["crop_pct"]) - used["crop_ratio"]) < 0.002
        and row["interpolation"] == used["eval_interpolation"]
    ]


def summarise(config: Config, folder: Path, leaves: Sequence[Leaf]) -> None:
    """Several sets or sizes: folder/metrics.json with all of them, and ImageNet-C's mean corruption error."""
    if len(leaves) == 1 and leaves[0].folder == str(folder):
        return
    figures = {}
    for leaf in leaves:
        content = json.loads((Path(leaf.folder) / METRICS).read_text())
        figures[str(Path(leaf.folder).relative_to(folder))] = content
    summary: dict[str, Any] = {"checkpoint": config["checkpoint"], "evaluations": figures}
    for size in config["sizes"]:
        rows = {one["set"][2:]: one for one in figures.values()
                if one["set"].startswith("c/") and one["settings"]["eval_size"] == size}  # fmt: skip
        errors = {name: 100 - one["top1"] for name, one in rows.items() if len(one["top1_by_severity"]) == 5}
        if (error := suites.mean_corruption_error(errors)) is not None:
            summary.setdefault("mce", {})[str(size)] = error
            say(f"mean corruption error {error:.2f} % at {size} px")
    records.write_json(folder / METRICS, summary)


def compare_all(folder: Path, names: Sequence[str]) -> None:
    """comparison.json: every two checkpoints on each set that both were evaluated on."""
    tables = {name: {str(path.parent.relative_to(folder / name)): path
                     for path in sorted((folder / name).rglob("predictions.csv"))} for name in names}  # fmt: skip
    found = []
    for a, b in combinations(names, 2):
        for place in sorted(tables[a].keys() & tables[b].keys()):
            one, other = (predictions.read(tables[name][place]) for name in (a, b))
            figures = comparison.compare(one, other, (a, b))
            folders = [str(tables[name][place].parent.absolute()) for name in (a, b)]
            found.append({"set": "" if place == "." else place, **figures, "folders": folders})
            say(comparison.line(figures) + (f" [{place}]" if place != "." else ""))
    records.write_json(folder / COMPARISON, {"comparisons": found})
