"""The page of a training run, from the files in its folder."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotnet import records
from cotnet.config import recipes
from cotnet.config.build import shown
from cotnet.config.compose import Config, flatten
from cotnet.evaluation.statistics import wilson
from cotnet.headline import CLASSIFICATION, NAMES, ranking_of
from cotnet.models.table import TABLE, Published
from cotnet.pages import charts
from cotnet.pages.blocks import (
    Block,
    Chart,
    Command,
    DataTable,
    Page,
    PageSection,
    Remarks,
    Tile,
    Tiles,
    numbers,
    texts,
)
from cotnet.pages.charts import Line, Mark
from cotnet.pages.read import backbone_of, read_json, read_yaml, status_of
from cotnet.reporting.terminal import clock

Rows = list[dict[str, Any]]
LINES = {  # title -> unit, and the records that it draws
    "Loss": ("loss", {"train": "train/loss", "val": "val/loss", "val, EMA": "val/loss_ema"}),
    "Top-1 accuracy": ("%", {"train": "train/accuracy", "val": "val/top1", "val, EMA": "val/top1_ema"}),
    "Top-5 accuracy": ("%", {"val": "val/top5", "val, EMA": "val/top5_ema"}),
    **{
        name[:1].upper() + name[1:]: ("%", {"val": f"val/{key}", "val, EMA": f"val/{key}_ema"})
        for key, name in NAMES.items()
        if key not in CLASSIFICATION
    },
    "Learning rate": ("learning rate", {"learning rate": "train/lr"}),
    "Norm of the gradient": ("norm", {"norm": "train/grad_norm"}),
    "Speed": ("images/s", {"images/s": "train/images_per_second"}),
    "Time spent waiting for data": ("share of the time", {"share": "train/data_wait"}),
}


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run's folder says."""

    folder: Path
    config: Config
    rows: Rows
    summary: dict[str, Any]
    starts: Rows
    incidents: Rows

    @property
    def status(self) -> str:
        return status_of(self.folder, self.summary)

    @property
    def backbone(self) -> str:
        return backbone_of(self.config)

    @property
    def ranking(self) -> tuple[str, str]:
        return ranking_of(self.summary, "best_")

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation."""
        averaged = self.summary.get("best_weights") == "ema"
        key = f"val/{self.ranking[0]}_ema" if averaged else f"val/{self.ranking[0]}"
        rows = [row for row in self.rows if row.get(key) is not None]
        return max(rows, key=lambda row: row[key], default=None)

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95 % interval of the best evaluation's top1 or top5, over images; None for other figures."""
        if name not in CLASSIFICATION:
            return None
        value, row = self.summary.get(f"best_{name}"), self.best
        images = row.get("val/images") if row else None
        return wilson(round(value * images / 100), int(images)) if value is not None and images else None

    def published(self) -> Published | None:
        """The published figures of this backbone at this size on ImageNet."""
        data = self.config.get("data", {})
        return TABLE.get((self.backbone, data.get("eval_size"))) if data.get("num_classes") == 1000 else None


def read_run(folder: Path) -> RunFiles:
    """The files of a run, finished or not. Raises InputError if one is damaged."""
    found = sorted((folder / "incidents").glob("*/incident.json"))
    return RunFiles(
        folder=folder,
        config=read_yaml(folder / "config.yaml") if (folder / "config.yaml").exists() else {},
        rows=records.read_existing(folder / "metrics.jsonl"),
        summary=read_json(folder / "summary.json") if (folder / "summary.json").exists() else {},
        starts=records.read_existing(folder / "environment.jsonl"),
        incidents=[read_json(path) for path in found],
    )


def run_page(folder: Path) -> Page:
    """The page of the run in `folder`; errors as in `read_run`."""
    run = read_run(folder)
    sections = [
        PageSection(title="Result", blocks=[headline(run), *warnings(run)]),
        PageSection(title="Curves", blocks=curves(run)),
        PageSection(title="Recipe", blocks=recipe(run)),
        PageSection(title="Commands", blocks=commands(run)),
        PageSection(title="Machine", blocks=[machine(run)]),
    ]
    return Page(
        title=f"{folder.absolute().name}: {run.backbone}",
        kind="run",
        status=run.status,
        sections=[section for section in sections if section.blocks],
    )


def headline(run: RunFiles) -> Tiles:
    """The best accuracy with its interval, and how far the run is."""
    tiles, given, last = [], run.summary, run.rows[-1] if run.rows else {}
    for number, name in enumerate(run.ranking):
        title = f"{NAMES[name]} there" if number else f"best {NAMES[name]}"
        if given.get(f"best_{name}") is not None:
            interval = run.interval(name)
            note = f"{interval[0]:.2f} to {interval[1]:.2f} over images" if interval else ""
            tiles.append(Tile(name=title, value=f"{given[f'best_{name}']:.2f} %", note=note))
    if given.get("best_epoch") is not None:
        tiles.append(Tile(name="best epoch", value=f"{given['best_epoch']:g}", note=f"{given['best_weights']} weights"))
    if (published := run.published()) and published.top1 is not None:
        tiles.append(Tile(name="published top-1", value=f"{published.top1:.1f} %", note=published.source))
    if last:
        epochs = run.config.get("train", {}).get("epochs")
        tiles.append(Tile(name="epoch", value=f"{last['epoch']:.4g} of {epochs}", note=f"step {last['step']:,}"))
    if given.get("images_per_second"):
        tiles.append(Tile(name="images/s", value=f"{given['images_per_second']:,.0f}", note="of training"))
    if given.get("seconds"):
        tiles.append(Tile(name="time", value=clock(given["seconds"]), note=f"{len(run.starts)} start(s)"))
    return Tiles(tiles=tiles)


def warnings(run: RunFiles) -> list[Block]:
    """What went wrong without ending the run."""
    lines = [one["message"] for one in run.summary.get("warnings", [])]
    lines += [f"step {one.get('step')}: the {one.get('what', 'loss')} was not finite" for one in run.incidents]
    return [Remarks(title="Warnings", lines=lines)] if lines else []


def curves(run: RunFiles) -> list[Block]:
    """A chart for each kind of record, with resumes, incidents and warnings marked."""
    blocks: list[Block] = []
    marks = events(run)
    told = f" {len(marks)} marked moments: {'; '.join(mark.text for mark in marks[:10])}." if marks else ""
    extra = sorted({key for row in run.rows for key in row if key.count("/") == 2 and "/top1" in key})
    others: dict[str, tuple[str, dict[str, str]]] = {}
    others |= {"Top-1 on other sets": ("%", {key.removeprefix("val/"): key for key in extra})} if extra else {}
    parts = sorted({key for row in run.rows for key in row if key.startswith("train/loss_")})
    others |= {"Parts of the loss": ("loss", {key.removeprefix("train/loss_"): key for key in parts})} if parts else {}
    for title, (unit, keys) in (LINES | others).items():
        series = {name: line for name, key in keys.items() if (line := curve(run.rows, key))}
        if series:
            alt = f"{title} over the epochs: {'; '.join(_last(name, line) for name, line in series.items())}.{told}"
            spec = charts.lines(series, x="epoch", y=unit, alt=alt, marks=marks)
            blocks.append(Chart(title=title, spec=spec, alt=alt))
    return blocks


def curve(rows: Rows, key: str) -> Line:
    """Epoch and value of the records that have `key`."""
    return [(row["epoch"], row[key]) for row in rows if key in row]


def _last(name: str, line: Line) -> str:
    value = line[-1][1]
    return f"{name} ends at {value:.4g}" if value is not None else f"{name} ends without a value"


def events(run: RunFiles) -> list[Mark]:
    """Resumes, warnings and incidents, at their epochs."""
    last = run.rows[-1] if run.rows else None
    if last is None or not last["step"]:
        return []
    per_step = last["epoch"] / last["step"]
    found = [
        (start["step"], "continued", f"with {start.get('ranks')} rank(s)") for start in run.starts if start["step"]
    ]
    found += [(one["step"], "warning", one["message"]) for one in run.summary.get("warnings", [])]
    found += [
        (one["step"], "incident", f"{one.get('what', 'loss')} not finite") for one in run.incidents if "step" in one
    ]
    return [Mark(step * per_step, f"{kind} at step {step}: {text}") for step, kind, text in found]


def recipe(run: RunFiles) -> list[Block]:
    """What differs from the published recipe, and every setting."""
    blocks: list[Block] = []
    command = run.starts[0].get("command", []) if run.starts else []
    if (name := recipes.named_in(command)) and (theirs := recipes.known(name)):
        rows = [
            (key, shown(ours), shown(published)) for key, ours, published in recipes.differences(run.config, theirs)
        ]
        columns = texts("setting", "here", f"experiment={name}")
        if rows:
            blocks.append(DataTable(title=f"Differs from experiment={name}", columns=columns, rows=rows))
        else:
            blocks.append(Remarks(title="Recipe", lines=[f"experiment={name}, unchanged"]))
    settings = [(key, shown(value)) for key, value in sorted(flatten(run.config).items())]
    if settings:
        columns = texts("setting", "value")
        blocks.append(DataTable(title="All settings", columns=columns, rows=settings))
    return blocks


def commands(run: RunFiles) -> list[Block]:
    """The commands that continue the run and that run it again elsewhere, with the code it ran on."""
    words = run.starts[-1].get("command") if run.starts else None
    if not words:
        return []
    kept = [word for word in words if not word.startswith("output_dir=")]
    again = shlex.join(["python", *kept, f"output_dir={run.folder}-again"])
    git = run.starts[-1].get("git")
    code = f"git checkout {git['commit']}{'   # and its uncommitted changes' if git['dirty'] else ''}\n" if git else ""
    return [
        Command(title="Continue", text=shlex.join(["python", *kept, f"output_dir={run.folder}"])),
        Command(title="Run it again", text=code + again),
        Command(title="Evaluate", text=shlex.join(["python", "evaluate.py", f"checkpoint={run.folder}"])),
    ]


def machine(run: RunFiles) -> DataTable:
    """Where and with which versions each process of the run started."""
    keys = ("time", "processor", "cuda", "driver", "step", "ranks", "cores", "memory_gib")
    columns = [*texts(*keys[:4]), *numbers(",", *keys[4:7]), *numbers(".1f", "memory_gib")]
    rows: list[Sequence[Any]] = []
    packages = sorted({name for start in run.starts for name in start.get("versions", {})})
    for start in run.starts:
        git = start.get("git") or {}
        gpus = ", ".join(start.get("gpus", [])) or "none"
        commit = f"{git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else "unknown"
        found = [start.get("versions", {}).get(name) for name in packages]
        rows.append([*(start.get(key) for key in keys), gpus, commit, *found])
    columns += texts("gpus", "commit", *packages)
    return DataTable(title="Starts", columns=columns, rows=rows)
