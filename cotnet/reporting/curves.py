"""curves.png: how a run went, drawn from its metrics.jsonl."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cotnet import records
from cotnet.figures import BLUE, GREEN, GREY, GRID, ORANGE, RED, figure
from cotnet.headline import CLASSIFICATION, NAMES, ranking_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]
MARGINS = {"left": 0.06, "right": 0.945, "bottom": 0.075, "top": 0.885, "wspace": 0.15, "hspace": 0.28}
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10.5, "fontweight": "bold"}


def draw_curves(metrics: Path, png: Path) -> None:
    """Draw loss, accuracy, learning rate, norm of the gradient and speed against the epoch; replaces `png` whole. Works
    in any thread. Errors as in `records.read` and `files.write_atomic`."""
    rows = records.read(metrics)
    last = rows[-1]["epoch"] if rows else 0
    with figure(png, (11, 7), rows=2, columns=2, margins=MARGINS) as (page, panels):
        for axes, draw in zip(panels, (_draw_loss, _draw_accuracy, _draw_rate, _draw_speed), strict=True):
            draw(axes, rows)
            axes.grid(color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.set_xlim(0, 1.02 * (last or 1))
            axes.spines[["left", "bottom"]].set_color("#9ca3af")
            axes.tick_params(colors=GREY, labelsize=9)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False, fontsize=9)
        for axes in panels[2:]:
            axes.set_xlabel("epoch", color=GREY)
        page.text(0.02, 0.955, _headline(metrics.absolute().parent.name, rows), fontsize=12, color="#111827")


def _draw_loss(axes: "Axes", rows: Rows) -> None:
    axes.set_title("loss", **TITLE)
    _noisy_line(axes, rows, "train/loss", "train")
    _line(axes, rows, "val/loss", label="val", color=ORANGE)
    _line(axes, rows, "val/loss_ema", label="val, EMA", color=ORANGE, linestyle="--")


def _draw_accuracy(axes: "Axes", rows: Rows) -> None:
    ranking = _ranking(rows)
    classifier = ranking == CLASSIFICATION
    axes.set_title("accuracy, %" if classifier else ", ".join(NAMES[name] for name in ranking), **TITLE)
    if classifier:
        _noisy_line(axes, rows, "train/accuracy", "train, top-1")
    for name, color in zip(ranking, (RED, GREEN), strict=True):
        label = NAMES[name]
        _line(axes, rows, f"val/{name}", label=label, color=color)
        _line(axes, rows, f"val/{name}_ema", label=f"{label}, EMA", color=color, linestyle="--")
    if best := _best(rows):
        epoch, value, _ = best
        axes.plot([epoch], [value], "o", color=RED, markersize=7, markerfacecolor="white", markeredgewidth=1.5)
        axes.annotate(f"{value:.2f}", (epoch, value), (-4, -17), textcoords="offset points", ha="center", color=RED)


def _draw_rate(axes: "Axes", rows: Rows) -> None:
    beside = _two_scales(axes, "learning rate", "norm of the gradient")
    _line(axes, rows, "train/lr", color=BLUE)
    epochs, norms = _curve(rows, "train/grad_norm")
    beside.plot(epochs, _mean(norms), color=ORANGE, linewidth=1)
    beside.set_ylim(bottom=0)
    axes.set_ylim(bottom=0)


def _draw_speed(axes: "Axes", rows: Rows) -> None:
    beside = _two_scales(axes, "images/s", "time spent waiting for data")
    _noisy_line(axes, rows, "train/images_per_second", None)
    epochs, shares = _curve(rows, "train/data_wait")
    beside.fill_between(epochs, 100 * _mean(shares), color=ORANGE, alpha=0.3, linewidth=0)
    beside.set_ylim(0, 100)
    beside.yaxis.set_major_formatter("{x:.0f} %")
    axes.set_ylim(bottom=0)


def _two_scales(axes: "Axes", left: str, right: str) -> "Axes":
    """Titles of two curves in one panel; the axes of the right one."""
    axes.set_title(left, **TITLE, color=BLUE)
    axes.set_title(right, **TITLE | {"loc": "right"}, color=ORANGE)
    beside = axes.twinx()
    beside.tick_params(colors=ORANGE, length=0, labelsize=9)
    beside.spines[:].set_visible(False)
    return beside


def _line(axes: "Axes", rows: Rows, key: str, **look: Any) -> None:
    epochs, values = _curve(rows, key)
    if values:
        axes.plot(epochs, values, marker="o" if len(values) == 1 else None, markersize=4, **look)


def _noisy_line(axes: "Axes", rows: Rows, key: str, label: str | None) -> None:
    """The mean over the neighbours, in front of what was measured."""
    epochs, values = _curve(rows, key)
    axes.plot(epochs, values, color=BLUE, linewidth=0.6, alpha=0.3)
    axes.plot(epochs, _mean(values), marker="o" if len(values) == 1 else None, markersize=4, color=BLUE, label=label)


def _headline(name: str, rows: Rows) -> str:
    name = name if len(name) <= 60 else f"{name[:59]}…"
    if not rows:
        return name
    text = f"{name}  ·  epoch {rows[-1]['epoch']:.4g}  ·  step {rows[-1]['step']:,}"
    best = _best(rows)
    name = NAMES[_ranking(rows)[0]]
    return f"{text}  ·  best {name} {best[1]:.2f} % ({best[2]}, epoch {best[0]:.4g})" if best else text


def _ranking(rows: Rows) -> tuple[str, str]:
    return next((ranking_of(row, "val/") for row in reversed(rows) if "val/images" in row), CLASSIFICATION)


def _best(rows: Rows) -> tuple[float, float, str] | None:
    """Epoch, value and weights of the best evaluation."""
    first = f"val/{_ranking(rows)[0]}"
    kinds = ((first, "raw"), (f"{first}_ema", "EMA"))
    found = [(r["epoch"], r[key], kind) for r in rows for key, kind in kinds if r.get(key) is not None]
    return max(found, key=lambda point: point[1], default=None)


def _curve(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the records that have `key`; a null is a gap."""
    points = [(row["epoch"], math.nan if row[key] is None else row[key]) for row in rows if key in row]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _mean(values: list[float]) -> np.ndarray:
    """The mean over the neighbours on both sides, a fiftieth of the points together; gaps count for nothing."""
    if not values:
        return np.empty(0)
    window, known = np.ones(2 * (len(values) // 100) + 1), np.isfinite(values)
    sums, counts = (np.convolve(part, window, "same") for part in (np.where(known, values, 0.0), known))
    with np.errstate(invalid="ignore"):  # 0 / 0 where there are only gaps
        return sums / counts
