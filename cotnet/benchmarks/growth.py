"""Records of nets in one file over several runs, and their plots: over batch, size and depth, and against accuracy."""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from cotnet.benchmarks import report
from cotnet.models import table

SAME: Final = ("name", "device", "mode", "dtype", "memory_format", "compiled", "fused", "batch", "size")
Record = dict[str, Any]


def keep(given: argparse.Namespace, rows: list[Record], value: str, unit: str) -> None:
    """Write the records beside what the file holds of other settings, and draw all of them."""
    if given.json:
        kept = json.loads(given.json.read_text())["records"] if given.json.exists() else []
        new = {tuple(row[key] for key in SAME) for row in rows}
        rows = [row for row in kept if tuple(row[key] for key in SAME) not in new] + rows
        report.write_json(given.json, rows)
    if given.plot and given.zoo:
        draw_accuracy(given.plot, rows)
    elif given.plot:
        draw_growth(given.plot, rows, value, unit)


def _axes(panels: int, width: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, 0.6 * width + 1), layout="constrained")
    FigureCanvasAgg(figure)
    found = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, found


def draw_growth(path: Path, rows: list[Record], value: str, unit: str) -> None:
    """A panel over the batch and one over the size of the images, a line per net, memory format and mode."""
    figure, panels = _axes(2, 5)
    for axes, axis, other in zip(panels, ("batch", "size"), ("size", "batch"), strict=True):
        lines: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
        for row in rows:
            lines[row["name"], row["mode"], row["memory_format"], row[other]][row[axis]] = row[value]
        for (name, mode, layout, fixed), points in sorted(lines.items()):
            if len(points) > 1:
                label = f"{name}, {mode}, {layout}, {other} {fixed}"
                axes.plot(*zip(*sorted(points.items()), strict=True), marker="o", markersize=3, label=label)
        axes.set(xlabel="images in a batch" if axis == "batch" else "pixels", ylabel=unit, ylim=(0, None))
        axes.set_xscale("log", base=2) if axis == "batch" else None
        if axes.lines:
            axes.legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw_accuracy(path: Path, rows: list[Record]) -> None:
    """Milliseconds an image against published top-1; a colour per family."""
    figure, (axes,) = _axes(1, 8)
    families: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        known = table.TABLE.get((row["name"], row["size"]))
        if known and known.top1:
            family = next((word for word in ("cot", "bot", "pvt", "resne") if word in row["name"]), row["name"])
            families[family].append({**row, "top1": known.top1})
    titles = {"cot": "CoTNet", "bot": "BoTNet", "pvt": "PVT", "resne": "ResNet and descendants"}
    for family, found in families.items():
        found.sort(key=lambda row: row["milliseconds"])
        times = [row["milliseconds"] / row["batch"] for row in found]
        axes.scatter(times, [row["top1"] for row in found], s=18, label=titles.get(family, family))
        for row, time in zip(found, times, strict=True):
            label = row["name"] if row["size"] == 224 else f"{row['name']}@{row['size']}"
            axes.annotate(label, (time, row["top1"]), fontsize=5, xytext=(2, 2), textcoords="offset points")
    axes.set(xlabel="milliseconds an image", ylabel="published top-1, %", xscale="log")
    low, high = axes.get_xlim()
    ticks = [step * 10**power for power in range(-3, 6) for step in (1, 2, 3, 5) if low < step * 10**power < high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
