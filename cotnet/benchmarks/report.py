"""What every benchmark says in the same way: the machine, a table, JSON, a plot."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from cotnet.reporting.environment import machine

Row = Mapping[str, Any]
FORMATS: Final = {  # what a table can show, in this order, and how
    **dict.fromkeys(("name", "setting", "of", "form", "peer", "mode", "dtype", "memory_format"), ""),
    **dict.fromkeys(("batch", "size", "runs"), "d"),
    "epochs": "g",
    **dict.fromkeys(("top1", "±"), ".2f"),
    "difference": "+.2f",
    "± of it": ".2f",
    "over": "",
    "minutes": ".1f",
    **dict.fromkeys(("forward_ms", "backward_ms", "milliseconds", "seconds", "peer_seconds"), ",.2f"),
    **dict.fromkeys(("images_per_second", "peer_images_per_second"), ",.1f"),
    **dict.fromkeys(("cpu_ms_per_image", "peer_cpu_ms_per_image", "peak_maps"), ".2f"),
    "peak_mib": ",.0f",
    "ratio": ".3f",
    "ratio_of": "",
    "target": ".2f",
    **dict.fromkeys(("forward_bandwidth", "backward_bandwidth"), ".0%"),
}


def machine_line() -> str:
    """`machine` for people, on one line."""
    found = machine()
    gpus = f", {len(found['gpus'])} x {found['gpus'][0]}" if found["gpus"] else ""
    names = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['processor']}, {found['cores']} cores, {found['memory_gib']:.0f} GiB{gpus}; {names}"


def print_table(rows: Sequence[Row]) -> None:
    """The machine, then the rows' columns that FORMATS knows; None: a dash. A column that no row has is left out."""
    sys.stdout.write(machine_line() + "\n")
    table = Table(box=box.SIMPLE_HEAD)
    present = {column: form for column, form in FORMATS.items() if any(row.get(column) is not None for row in rows)}
    for column, form in present.items():
        table.add_column(column.replace("_", " "), justify="right" if form else "left", no_wrap=not form)
    for row in rows:
        values = ((row.get(column), form) for column, form in present.items())
        table.add_row(*("-" if value is None else f"{value:{form}}" for value, form in values))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, markup=False).print(table)


def output_file(name: str) -> Path:
    """The type of options that name a file to write: told before the measurement, not after it, if that cannot be."""
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be written ({error.strerror}); give another file") from error
    if path.is_file() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{name} is write-protected; give another file")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{name} is a folder; give a file")
    return path


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """{"machine": ..., "records": rows}."""
    path.write_text(json.dumps({"machine": machine(), "records": list(rows)}, indent=1) + "\n")


def draw_bars(path: Path, groups: Mapping[str, Mapping[str, float]], *, title: str, unit: str) -> None:
    """A panel of horizontal bars per group, {group: {label: value}}; the first bar of each is ours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(len(bars) for bars in groups.values())
    figure = Figure(figsize=(3.6 * len(groups), 0.9 + 0.45 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for axes, (group, bars) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        colours = ["tab:blue", *["0.7"] * (len(bars) - 1)]
        drawn = axes.barh(list(bars), list(bars.values()), color=colours)
        axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_title(group, fontsize=9)
        axes.set_xlabel(unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
