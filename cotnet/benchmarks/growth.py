"""Records of nets in one file over several runs, and their plots: over batch, size and depth, and against accuracy."""

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Final

from cotnet.benchmarks import report
from cotnet.models import table

SAME: Final = (
    "name",
    "device",
    "mode",
    "dtype",
    "memory_format",
    "compiled",
    "fused",
    "checkpointing",
    "recompute",
    "batch",
    "size",
)
FLAGS: Final = {"compiled": "compiled", "fused": "fused", "recompute": "norms recomputed"}
Record = dict[str, Any]


def keep(given: argparse.Namespace, rows: list[Record], value: str, unit: str) -> None:
    """Write the records beside what the file holds of other settings, and draw all of them."""
    if given.json:
        kept = json.loads(given.json.read_text())["records"] if given.json.exists() else []
        new = [_settings(row) for row in rows]
        rows = [row for row in kept if _settings(row) not in new] + rows
        report.write_json(given.json, rows)
    if given.plot and given.zoo:
        draw_accuracy(given.plot, rows)
    elif given.plot:
        draw_growth(given.plot, rows, value, unit)


def _settings(row: Record) -> list[Any]:
    return [row.get(key) or None for key in SAME]  # a file of an older version lacks some


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
    """Panels over the batch, the size of the images and the depth; a line per net or family, mode and memory format."""
    labels = {"batch": "images in a batch", "size": "pixels", "depth": "layers (the number in the name)"}
    figure, panels = _axes(len(labels), 4.5)
    rows = [{**row, **_depth(row["name"])} for row in rows]
    for axes, axis in zip(panels, labels, strict=True):
        lines = _lines(rows, axis, value)
        for held, points in sorted(lines.items()):
            axes.plot(*zip(*sorted(points.items()), strict=True), "o-", markersize=3, label=", ".join(held))
        axes.set(xlabel=labels[axis], ylabel=unit, ylim=(0, None))
        found = sorted({x for points in lines.values() for x in points})
        axes.set_xscale("log", base=2) if axis == "batch" else None
        axes.set_xticks(found, [str(x) for x in found])
        if lines:
            axes.legend(fontsize=6)
    figure.savefig(path, dpi=130)


def _held(row: Record, axis: str) -> tuple[str, ...]:
    """What is the same along a line, in words."""
    flags = [word for key, word in FLAGS.items() if row.get(key)]
    stages = [f"stages {row['checkpointing']} recomputed"] if row.get("checkpointing") else []
    sizes = [f"{key} {row[key]}" for key in ("batch", "size") if key != axis]
    net = row["family" if axis == "depth" else "name"]
    return (net, row["mode"], row["dtype"], row["memory_format"], *flags, *stages, *sizes)


def _lines(rows: list[Record], axis: str, value: str) -> dict[tuple[str, ...], dict[int, float]]:
    """Of at least two points; over the depth, those of the settings that most nets were run with."""
    lines: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row[axis]:
            lines[_held(row, axis)][row[axis]] = row[value]
    lines = {held: points for held, points in lines.items() if len(points) > 1}
    if axis == "depth" and lines:
        nets = Counter(held[1:] for held, points in lines.items() for _ in points)
        lines = {held: points for held, points in lines.items() if held[1:] == nets.most_common(1)[0][0]}
    return lines


def _depth(name: str) -> dict[str, Any]:
    """cotnet50 is a `family` cotnet of `depth` 50."""
    digits = re.search(r"\d{2,}", name)
    return {"family": name.replace(digits[0], "") if digits else name, "depth": int(digits[0]) if digits else None}


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
    figure.savefig(path, dpi=160)
