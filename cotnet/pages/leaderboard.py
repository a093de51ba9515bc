"""All runs and evaluations below some folders in one table, on a page and on the terminal."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cotnet.errors import InputError
from cotnet.evaluation.statistics import wilson
from cotnet.headline import NAMES
from cotnet.pages import charts
from cotnet.pages.blocks import Block, Chart, DataTable, Page, PageSection, numbers, texts
from cotnet.pages.charts import Interval
from cotnet.pages.evaluation_page import METRICS
from cotnet.pages.read import backbone_of, read_json, read_yaml, status_of
from cotnet.reporting.terminal import clock, print_table

DEPTH: Final = 6  # folders below the given ones that are looked into
SHOWN: Final = 40  # rows of the chart
COLUMNS: Final = (
    *(*texts("folder", "kind", "backbone", "set"), *numbers(",", "px")),
    *(*numbers(".2f", "top-1 %", "from", "to", "top-5 %"), *numbers(",.0f", "images/s")),
    *(*numbers(".2f", "latency, ms"), *numbers(",", "epochs"), *texts("status", "time")),
)


DENSE: Final = ("box_ap", "mask_ap", "miou")  # figures of detectors and segmenters, with columns where there are some


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run or an evaluation, as a row."""

    folder: Path
    kind: str
    backbone: str = ""
    set: str = ""
    size: int | None = None
    top1: float | None = None
    interval: tuple[float | None, float | None] = (None, None)
    top5: float | None = None
    images_per_second: float | None = None
    latency: float | None = None
    epochs: int | None = None
    status: str = ""
    seconds: float | None = None
    dense: dict[str, float | None] = field(default_factory=dict)  # by the names of DENSE

    def cells(self, dense: Sequence[str] = ()) -> list[Any]:
        """The cells of COLUMNS, then these figures of DENSE."""
        time = "" if self.seconds is None else clock(self.seconds)
        return [*self._cells(time), *(self.dense.get(name) for name in dense)]

    def _cells(self, time: str) -> list[Any]:
        return [str(self.folder), self.kind, self.backbone, self.set, self.size, self.top1, *self.interval, self.top5,
                self.images_per_second, self.latency, self.epochs, self.status, time]  # fmt: skip


def find(folders: Iterable[Path]) -> list[Path]:
    """Every folder with a run or an evaluation, among the given ones and below them."""
    found: dict[Path, None] = {}
    for folder in folders:
        for place, below, files in os.walk(folder):
            depth = len(Path(place).relative_to(folder).parts)
            below[:] = sorted(name for name in below if name not in ("wandb", "checkpoints", "look") and depth < DEPTH)
            if "metrics.jsonl" in files or METRICS in files:
                found[Path(place)] = None
    return list(found)


def entries(folders: Iterable[Path]) -> tuple[list[Entry], list[str]]:
    """The rows of these folders, the best top-1 first, and a line about each file that cannot be read."""
    rows: list[Entry] = []
    damaged: list[str] = []
    for folder in folders:
        try:
            rows += _entries(folder)
        except InputError as error:
            damaged.append(str(error))
    return sorted(rows, key=_rank, reverse=True), damaged


def _rank(row: Entry) -> tuple[float, ...]:
    """By top-1; then box AP, mask AP and mIoU."""
    return tuple(-1.0 if value is None else value for value in (row.top1, *(row.dense.get(name) for name in DENSE)))


def columns_of(rows: Sequence[Entry]) -> tuple[list[str], list[Any]]:
    """The figures of DENSE that some row has, and all columns of the table."""
    dense = [name for name in DENSE if any(row.dense.get(name) is not None for row in rows)]
    return dense, [*COLUMNS, *numbers(".2f", *(f"{NAMES[name]} %" for name in dense))]


def _entries(folder: Path) -> Iterator[Entry]:
    if (folder / "metrics.jsonl").exists():
        yield _run(folder)
    if (folder / METRICS).exists():
        content = read_json(folder / METRICS)
        if "evaluations" not in content:  # these are in folders of their own
            yield _evaluation(folder, content)


def _run(folder: Path) -> Entry:
    summary = read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else {}
    top1, images = summary.get("best_top1"), _val_images(folder)
    interval = wilson(round(top1 * images / 100), images) if top1 is not None and images else (None, None)
    return Entry(
        folder=folder,
        kind="run",
        backbone=backbone_of(config),
        set="val",
        size=config.get("data", {}).get("eval_size") or config.get("data", {}).get("eval_short_side"),
        top1=top1,
        interval=interval,
        top5=summary.get("best_top5"),
        images_per_second=summary.get("images_per_second"),
        epochs=config.get("train", {}).get("epochs"),
        status=status_of(folder, summary),
        seconds=summary.get("seconds"),
        dense={name: summary.get(f"best_{name}") for name in DENSE},
    )


def _val_images(folder: Path) -> int | None:
    """The number of val images, from the last whole record that has it."""
    for line in reversed((folder / "metrics.jsonl").read_bytes().splitlines()):
        if b'"val/images"' in line:
            with contextlib.suppress(ValueError):  # cut in mid-line: the record before it
                return int(json.loads(line)["val/images"])
    return None


def _evaluation(folder: Path, given: dict[str, Any]) -> Entry:
    places = (folder, *folder.absolute().parents[:3])  # of several sets it lies in a folder above
    config = next((place / "evaluation.yaml" for place in places if (place / "evaluation.yaml").exists()), None)
    return Entry(
        folder=folder,
        kind="evaluation",
        backbone=backbone_of(read_yaml(config)) if config else "",
        set=given.get("set", ""),
        size=given.get("settings", {}).get("eval_size"),
        top1=given.get("top1"),
        interval=tuple(given.get("top1_interval", (None, None))),
        top5=given.get("top5"),
        images_per_second=given.get("images_per_second"),
        latency=given.get("latency_ms_p50"),
        status=f"{given['weights']} weights" if "weights" in given else "",
        dense={name: given.get(name) for name in DENSE},
    )


def leaderboard_page(rows: Sequence[Entry], base: Path) -> Page:
    """The page of these rows; links are relative to `base`, the folder of the page."""
    links = []
    for row in rows:
        report = row.folder / "report.html"
        links.append(os.path.relpath(report, base) if report.exists() else "")
    blocks: list[Block] = []
    known = [row for row in rows if row.top1 is not None]
    if known:
        points = [Interval(_short(row, base), row.top1 or 0.0, *row.interval, row.kind) for row in known[:SHOWN]]
        alt = (
            f"Top-1 of the best {len(points)} with 95 % intervals: {points[0].name} leads with {points[0].value:.2f} %."
        )
        spec = charts.estimates(points, x="top-1, %", alt=alt)
        blocks.append(Chart(title="Accuracy", spec=spec, alt=alt, wide=True))
    timed = [row for row in known if row.latency]
    if timed:
        values = [{"x": row.latency, "y": row.top1, "name": _short(row, base), "set": row.set} for row in timed]
        alt = f"Top-1 against latency of one image, of {len(values)} evaluations."
        spec = charts.scatter(values, x="latency, ms", y="top-1, %", color="set", alt=alt)
        blocks.append(Chart(title="Accuracy against latency", spec=spec, alt=alt, wide=True))
    dense, columns = columns_of(rows)
    cells = [[_short(row, base), *row.cells(dense)[1:]] for row in rows]
    blocks.append(DataTable(title="Runs and evaluations", columns=columns, rows=cells, links=links))
    return Page(
        title=f"{len(rows)} runs and evaluations",
        kind="leaderboard",
        sections=[PageSection(title="Leaderboard", blocks=blocks)],
    )


def _short(row: Entry, base: Path) -> str:
    return os.path.relpath(row.folder, base)


def print_leaderboard(rows: Sequence[Entry]) -> None:
    """The same table on the terminal."""
    dense, columns = columns_of(rows)
    lines = [[column.text(cell) for column, cell in zip(columns, row.cells(dense), strict=True)] for row in rows]
    words = [column.heading for column in columns if not column.form]
    print_table([column.heading for column in columns], lines, texts=words)
