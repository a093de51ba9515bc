"""The tables of the CoTNet, BoTNet and PVT papers, read from `tables.yaml`, and the model of each row."""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from cotnet import dense_parts, parts
from cotnet.commands.program import in_one_line
from cotnet.config.build import nearest, typed
from cotnet.config.compose import Config, compose
from cotnet.errors import InputError
from cotnet.models.table import count_multiply_adds, count_parameters
from cotnet.pages.read import read_yaml

DATA: Final = Path(__file__).with_name("tables.yaml")
# The figures that a row may have, and their headings.
FIGURES: Final = {
    "parameters": "parameters, M",
    "multiply_adds": "multiply-adds, G",
    "top1": "top-1",
    "top5": "top-5",
    "box_ap": "box AP",
    "box_ap50": "AP50",
    "box_ap75": "AP75",
    "mask_ap": "mask AP",
    "mask_ap50": "AP50 (mask)",
    "mask_ap75": "AP75 (mask)",
    "miou": "mIoU",
    "milliseconds": "ms",
}
# Of a backbone: what it starts from and how it trains, not what it computes.
TRAINING: Final = ("weights", "ema", "head", "drop_path", "drop_path_rate", "dropout")


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row: the paper's label and figures, and `run`, the overrides of train.py that follow the table's recipe, or
    `cannot`, why nothing here runs it.

    `read`: figures found in `source`, a key of the file's `sources` (by default the table's). `recalled`: from memory.
    `ours`: an accuracy that was measured here, and where.
    """

    label: str
    run: str | None = None
    cannot: str | None = None
    read: dict[str, float] = field(default_factory=dict)
    recalled: dict[str, float] = field(default_factory=dict)
    source: str | None = None
    ours: str | None = None


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table. `recipe`: the first overrides of each row. `speed`: whether its models are timed, in one run. `side` of
    the images that are counted and timed, in pixels, by default that of the row's evaluation."""

    title: str
    about: str
    recipe: str = ""
    source: str | None = None
    speed: bool = True
    side: int | None = None
    rows: tuple[PaperRow, ...]

    def overrides(self, row: PaperRow) -> str:
        """The overrides of train.py, as a shell takes them."""
        return f"{self.recipe} {row.run}".strip()

    def figures(self) -> list[str]:
        """The figures that some row has."""
        return [name for name in FIGURES if any(name in row.read or name in row.recalled for row in self.rows)]


class RowModel(NamedTuple):
    """The model of a row in evaluation mode, the part of it that is timed, and the side of its images in pixels.

    Of a classifier the part is the whole, of a detector or segmenter the backbone and the pyramid.
    """

    whole: nn.Module
    timed: nn.Module
    side: int


def read_tables(path: Path = DATA) -> tuple[dict[str, str], list[PaperTable]]:
    """What the names of sources stand for, and the tables.

    Raises InputError, one line, for a file or row that is wrong.
    """
    content = read_yaml(path)
    if set(content) != {"sources", "tables"}:
        raise InputError(f"{path}: must hold sources and tables, and nothing else")
    tables = [_table(node, f"{path.name}: table {number}") for number, node in enumerate(content["tables"], start=1)]
    for table in tables:
        _check(table, content["sources"])
    return content["sources"], tables


def _table(node: dict[str, Any], where: str) -> PaperTable:
    where = f"{where} ({node.get('title')})"
    given = node.get("rows") or []
    rows = [typed(PaperRow, row, f"{where}, row {number}") for number, row in enumerate(given, start=1)]
    return typed(PaperTable, {**node, "rows": rows}, where)


def _check(table: PaperTable, sources: dict[str, str]) -> None:
    for row in table.rows:
        where = f"{table.title}, {row.label}"
        for name in (*row.read, *row.recalled):
            if name not in FIGURES:
                raise InputError(f"{where}: {name} is no figure; {nearest(name, FIGURES)}")
        if twice := row.read.keys() & row.recalled.keys():
            raise InputError(f"{where}: {min(twice)} is both read and recalled; leave one of them out")
        source = row.source or table.source
        if row.read and source not in sources:
            raise InputError(f"{where}: source {source} is unknown; {nearest(str(source), sources)}")
        if (row.run is None) == (row.cannot is None):
            raise InputError(f"{where}: give either run or cannot")
    labels = [row.label for row in table.rows]
    if doubled := {label for label in labels if labels.count(label) > 1}:
        raise InputError(f"{table.title}: {min(doubled)} stands there twice; give each row a label of its own")


def configuration(table: PaperTable, row: PaperRow) -> Config:
    """The configuration that train.py makes of the row's command, resolved.

    Raises InputError, one line that names the row.
    """
    try:
        return compose("train", [*shlex.split(table.overrides(row)), "data.root=DIR"])
    except Exception as error:
        if line := in_one_line(error):
            raise InputError(f"{table.title}, {row.label}: {line}") from None
        raise


def build_row(config: Config, device: str = "meta", *, side: int | None = None) -> RowModel:
    """The model of a configuration with fresh weights; on the meta device shapes without memory. `side`: instead of the
    evaluation's."""
    with torch.device(device):
        backbone = parts.build_backbone({**config["backbone"], "weights": None, "head": "keep"})
        if not parts.is_dense(config):
            model = backbone.eval()
            return RowModel(model, model, side or config["data"]["eval_size"])
        settings = dense_parts.settings_of(config)
        model = dense_parts.without_weights(backbone, settings).eval()
        return RowModel(model, model.get_submodule("backbone"), side or config["data"]["eval_short_side"])


def counts(config: Config, side: int | None = None) -> dict[str, int]:
    """Parameters of the whole model, multiply-adds of the timed part for one square image, and its side."""
    model = build_row(config, side=side)
    adds = count_multiply_adds(model.timed, model.side)
    return {"parameters": count_parameters(model.whole), "multiply_adds": adds, "size": model.side}


def identity(config: Config) -> str:
    """The same text for rows of the same model and image size, whatever their training is."""
    backbone = {key: value for key, value in config["backbone"].items() if key not in TRAINING}
    data = {key: config["data"].get(key) for key in ("eval_size", "eval_short_side", "num_classes")}
    return json.dumps([backbone, config.get("task"), data], sort_keys=True, default=str)
