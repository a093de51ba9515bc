"""What all benchmarks share: options, the machine, a table, JSON, bars."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cotnet.benchmarks.meters import progress
from cotnet.figures import figure
from cotnet.files import write_text
from cotnet.reporting.environment import machine
from cotnet.reporting.terminal import print_table

Row = Mapping[str, Any]


def options(program: str, about: str, *, plot: bool = True) -> argparse.ArgumentParser:
    """A benchmark's options, with --json and, unless it has no plot, --plot."""
    parser = argparse.ArgumentParser(prog=f"python -m cotnet.benchmarks.{program}", description=about)
    parser.add_argument("--json", type=output_file, help="file for the records")
    if plot:
        parser.add_argument("--plot", type=output_file, help="PNG file for the plot")
    return parser


def finish(rows: Sequence[Row], path: Path | None, *, kept: Sequence[Row] = ()) -> None:
    """Print the machine and a table of the rows; None and what a row lacks is a dash, lists are left out.

    Where a JSON file is given, write the machine and the rows behind those that are `kept` to it.
    """
    progress("")
    here = machine()
    gpus = f", {len(here['gpus'])} x {here['gpus'][0]}" if here["gpus"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    memory = f"{here['memory_gib']:.0f} GiB"
    sys.stdout.write(f"{here['processor']}, {here['cores']} cores, {memory}{gpus}; {versions}\n")
    cells = {key: value for row in rows for key, value in row.items() if isinstance(value, str | int | float)}
    headings = {key.replace("_", " "): value for key, value in cells.items()}
    texts = [heading for heading, value in headings.items() if isinstance(value, str)]
    print_table([*headings], [[shown(row.get(key)) for key in cells] for row in rows], texts=texts)
    if path:
        write_text(path, json.dumps({"machine": here, "records": [*kept, *rows]}, indent=1) + "\n")


def shown(value: Any) -> str:
    """A table's cell; four digits of a float."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def output_file(name: str) -> Path:
    """A file to write, as an option's type: refused before the measurement if it cannot be written."""
    path = Path(name)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{name} is a folder; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be written ({error.strerror}); give another file") from error
    if path.exists() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{name} is write-protected; give another file")
    return path


def draw_bars(png: Path | None, groups: Mapping[str, Mapping[str, float]], *, title: str, unit: str) -> None:
    """A panel of horizontal bars per group, {group: {label: value}}, ours first; where a file is given."""
    if not png:
        return
    size = (3.6 * len(groups), 0.9 + 0.45 * max(map(len, groups.values())))
    with figure(png, size, columns=len(groups), dpi=130) as (page, panels):
        page.suptitle(title, fontsize=10)
        for axes, (group, bars) in zip(panels, groups.items(), strict=True):
            drawn = axes.barh(list(bars), list(bars.values()), color=["tab:blue", *["0.7"] * (len(bars) - 1)])
            axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=8)
            axes.invert_yaxis()
            axes.margins(x=0.18)
            axes.set_title(group, fontsize=9)
            axes.set_xlabel(unit, fontsize=8)
            axes.tick_params(labelsize=8)
