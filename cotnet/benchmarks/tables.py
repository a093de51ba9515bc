"""The papers' tables with our figures beside the published ones: `python -m cotnet.benchmarks.tables [--measure] ...`.

--measure counts parameters and multiply-adds of each row's model and times inference: the models of a table are in
memory together and take turns; medians. Without it, the page is written anew from the JSON file. Rows, published
figures and commands are in `tables.yaml`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cotnet.benchmarks import common
from cotnet.benchmarks.nets import NetCase, measure_speed
from cotnet.benchmarks.paper_tables import (
    DATA,
    FIGURES,
    PaperRow,
    PaperTable,
    build_row,
    configuration,
    counts,
    identity,
    read_tables,
)
from cotnet.commands.program import one_line
from cotnet.config.compose import Config
from cotnet.errors import InputError
from cotnet.files import write_text
from cotnet.pages.read import read_json
from cotnet.reporting.environment import CODE, device_name, machine

Record = dict[str, Any]
PRECISION: Final = "fp32"

HEAD: Final = """\
# The papers' tables

Each row of the tables of CoTNet (Li et al. 2021), BoTNet (Srinivas et al. 2021) and PVT (Wang et al. 2021): the
published figures, the command that trains it here, and what was counted and timed here. **No ImageNet, COCO or ADE20K
training was run here**: the last column is empty but for what was trained on [Fashion-MNIST](fashion_mnist.md).
Published figures are from other code, other hardware and, in rows of other networks, often from other recipes than the
command's.

- Published: parameters in millions, multiply-adds in billions, accuracies and AP in percent. The column "from" names
  the [source](#sources). Figures in *italics* are recalled from memory, not checked. An empty cell: no figure is at
  hand. The other networks in the tables of CoTNet and BoTNet are listed from memory, so one may be missing.
- The command is `python train.py` with these overrides and `data.root=DIR`. `python evaluate.py checkpoint=FILE`
  evaluates a file of weights ([Evaluating](evaluating.md)).
- Ours: parameters of the whole model. Multiply-adds and images/s are of one square image of so many pixels a side: of a
  classifier the whole network, of a detector or segmenter the backbone and the feature pyramid, since the work of a
  head depends on what it finds. Counted are convolutions, linear layers, attention products and local aggregations.
- images/s: inference of one image at a time, {precision}, eager, contiguous, random weights (on a CPU: of CPU time in
  one thread); the models of a table are in memory together and take turns; the median of the turns, and its ratio to
  the table's first timed row. A dash: not timed.
"""


def measure(table: PaperTable, rounds: int) -> list[Record]:
    """The figures of each row of a table that runs here; equal models are counted and timed once."""
    configs = {row.label: configuration(table, row) for row in table.rows if row.run is not None}
    first: dict[str, str] = {}  # model -> the first row that has it
    for label, config in configs.items():
        first.setdefault(identity(config), label)
    figures: dict[str, Record] = {}
    for label in first.values():
        common.progress(f"{table.title}: counts {label}")
        figures[label] = dict(counts(configs[label], table.side))
    if table.speed and rounds and figures:
        for record in _timed({label: configs[label] for label in first.values()}, table.side, rounds):
            figures[record.pop("name")] |= record
    commands = {row.label: table.overrides(row) for row in table.rows}
    return [
        {"table": table.title, "row": label, "command": commands[label], **figures[first[identity(config)]]}
        for label, config in configs.items()
    ]


def _timed(configs: dict[str, Config], side: int | None, rounds: int) -> list[Record]:
    """Speed of the rows' models, by their labels, in one run."""
    device = common.first_device()
    models = {label: build_row(config, "cpu", side=side) for label, config in configs.items()}
    shared: Record = {"device": device_name(device), "mode": "inference", "dtype": PRECISION}
    shared |= {"memory_format": "contiguous", "cpu_time": device.type == "cpu"}
    cases = [
        NetCase(
            name=label,
            batch=1,
            size=model.side,
            compiled=False,
            fused=False,
            checkpointing=[],
            **shared,
        )
        for label, model in models.items()
    ]
    return measure_speed(cases, rounds, device, given={label: model.timed for label, model in models.items()})


def page(sources: dict[str, str], tables: Sequence[PaperTable], measured: Record) -> str:
    """docs/tables.md.

    Raises InputError for a row whose figures are missing in `measured`, or are of another command.
    """
    intro = HEAD.format(precision=PRECISION)
    here = measured["machine"]
    device = ", ".join(here["gpus"]) or f"{here['cores']} cores of {here['processor']}, {here['memory_gib']:.0f} GiB"
    versions = ", ".join(f"{name} {here['versions'][name]}" for name in ("torch", "torchvision", "timm"))
    intro += f"- Machine: {device}; {versions}. {measured['note']}\n"
    intro += "\nThe data are in `cotnet/benchmarks/tables.yaml` and `docs/tables.json`. This page is written by\n"
    intro += "`python -m cotnet.benchmarks.tables --write docs/tables.md`, with `--measure` after measuring anew.\n"
    records = {(record["table"], record["row"]): record for record in measured["records"]}
    sections = [_section(table, records) for table in tables]
    legend = "".join(f"- **{name}**: {text}\n" for name, text in sources.items())
    return "\n".join([intro, *sections, f"## Sources\n\n{legend}"])


def _section(table: PaperTable, records: dict[tuple[str, str], Record]) -> str:
    figures = table.figures()
    ours = ("`python train.py`", "pixels", "our parameters, M", "our multiply-adds, G", "images/s", "ours")
    head = ("", *(FIGURES[name] for name in figures), "from", *ours)
    lines = [head, tuple("---" for _ in head)]
    rate: float | None = None
    for row in table.rows:
        record = _record(table, row, records)
        rate = rate or record.get("images_per_second")
        lines.append((row.label, *published(table, row, figures), *_ours(table, row, record, rate)))
    cells = ["| " + " | ".join(line) + " |\n" for line in lines]
    body = "".join(cells).replace("|  |", "| |").replace("|  |", "| |")
    return f"## {table.title}\n\n{table.about.strip()}\n\n{body}"


def _record(table: PaperTable, row: PaperRow, records: dict[tuple[str, str], Record]) -> Record:
    """What was measured for a row; nothing for one that nothing here runs."""
    if row.run is None:
        return {}
    record, again = records.get((table.title, row.label)), f"--measure --only '{table.title}'"
    if record is None:
        raise InputError(f"{table.title}, {row.label}: its figures are missing in the JSON file; give {again}")
    if record["command"] != table.overrides(row):
        raise InputError(f"{table.title}, {row.label}: its figures are of another command; give {again}")
    return record


def published(table: PaperTable, row: PaperRow, figures: Sequence[str]) -> list[str]:
    """The published figures of a row as cells, and where they are from; what is recalled in italics."""
    cells = [
        str(row.read[name]) if name in row.read else f"*{row.recalled[name]}*" if name in row.recalled else ""
        for name in figures
    ]
    origins = [row.source or str(table.source)] * bool(row.read) + ["*recalled*"] * bool(row.recalled)
    return [*cells, ", ".join(origins)]


def _ours(table: PaperTable, row: PaperRow, record: Record, first_rate: float | None) -> list[str]:
    """Command, pixels, counts, speed with its ratio to the table's first, and accuracy as cells."""
    if not record:
        return [f"cannot run here: {row.cannot}", *[""] * 4, "–"]
    rate = record.get("images_per_second")
    speed = f"{rate:.3g} ({rate / first_rate:.2f})" if rate and first_rate else "–"
    adds = [f"{record['parameters'] / 1e6:.2f}", f"{record['multiply_adds'] / 1e9:.2f}"]
    return [f"`{table.overrides(row)}`", str(record["size"]), *adds, speed, row.ours or "–"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write; exits with 2 and one line for a wrong row or option."""
    about = "The papers' tables: published figures, commands, our counts and speed."
    parser = common.options("tables", about, plot=False)
    parser.set_defaults(json=CODE / "docs" / "tables.json")
    parser.add_argument("--measure", action="store_true", help="count and time; else the figures are the JSON file's")
    parser.add_argument("--only", default="", metavar="TEXT", help="measure tables whose title holds TEXT, keep others")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each model (%(default)s); 0: only count")
    parser.add_argument("--note", default="", help="what else ran on the machine; a sentence of the page")
    parser.add_argument("--write", type=common.output_file, help="file for the page")
    parser.add_argument("--data", type=Path, default=DATA, help="rows and published figures (%(default)s)")
    given = parser.parse_args(arguments)
    with one_line(keep=False):
        sources, tables = read_tables(given.data)
        if not given.measure and not given.write:
            raise InputError("give --measure, --write FILE or both")
        if given.measure:
            _measure_all(tables, given)
        if given.write and not given.json.exists():
            raise InputError(f"--json {given.json}: no such file; add --measure, which writes it")
        if given.write:
            write_text(given.write, page(sources, tables, read_json(given.json)))


def _earlier(path: Path) -> dict[str, list[Record]] | None:
    """The records of a file by their tables; None if they are of another machine."""
    rows: dict[str, list[Record]] = {}
    if path.exists():
        content, here = read_json(path), machine()
        if any(content["machine"][key] != here[key] for key in ("processor", "gpus")):
            return None
        for record in content["records"]:
            rows.setdefault(record["table"], []).append(record)
    return rows


def _measure_all(tables: Sequence[PaperTable], given: argparse.Namespace) -> None:
    """Measures the chosen tables, and writes the JSON file after each."""
    chosen = [table for table in tables if given.only in table.title]
    if not chosen:
        titles = "; ".join(table.title for table in tables)
        raise InputError(f"--only {given.only}: no table has it in its title; give a part of one of: {titles}")
    if given.rounds < 0:
        raise InputError("--rounds must be at least 0")
    rows = _earlier(given.json)
    if rows is None and len(chosen) < len(tables):
        raise InputError(f"{given.json} is of another machine; give another --json, or measure all tables")
    rows = rows or {}
    for table in chosen:
        rows[table.title] = measure(table, given.rounds)
        common.finish(rows[table.title], None)
        records = [record for one in tables for record in rows.get(one.title, [])]
        content = {"machine": machine(), "note": given.note, "records": records}
        write_text(given.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
