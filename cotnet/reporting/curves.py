"""curves.png: how a run went, drawn from its metrics.jsonl."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotnet import records
from cotnet.figures import BLUE, GREEN, GREY, GRID, ORANGE, RED, figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

MARGINS = {"left": 0.06, "right": 0.945, "bottom": 0.075, "top": 0.885, "wspace": 0.15, "hspace": 0.28}
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10.5, "fontweight": "bold"}


def draw_curves(metrics: Path, png: Path) -> None:
    """Draw loss, accuracy, learning rate, norm of the gradient and speed against the epoch; replaces `png` whole.

    May be called from any thread. Errors as in `records.read` and `files.write_atomic`.
    """
    rows = records.read(metrics)
    with figure(png, (11, 7), rows=2, columns=2, margins=MARGINS) as (page, (loss, accuracy, rate, speed)):
        _draw_loss(loss, rows)
        _draw_accuracy(accuracy, rows)
        _draw_rate(rate, rows)
        _draw_speed(speed, rows)
        last = rows[-1]["epoch"] if rows else 0
        for axes in (loss, accuracy, rate, speed):
            _dress(axes, last)
        for axes in (rate, speed):
            axes.set_xlabel("epoch", color=GREY)
        page.text(0.02, 0.955, _headline(metrics.absolute().parent.name, rows), fontsize=12, color="#111827")


def _draw_loss(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    axes.set_title("loss", **TITLE)
    _noisy_line(axes, rows, "train/loss", "train")
    _line(axes, rows, "val/loss", label="val", color=ORANGE)
    _line(axes, rows, "val/loss_ema", label="val, EMA", color=ORANGE, linestyle="--")


def _draw_accuracy(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    axes.set_title("accuracy, %", **TITLE)
    _noisy_line(axes, rows, "train/accuracy", "train, top-1")
    for name, label, color in (("top1", "top-1", RED), ("top5", "top-5", GREEN)):
        _line(axes, rows, f"val/{name}", label=label, color=color)
        _line(axes, rows, f"val/{name}_ema", label=f"{label}, EMA", color=color, linestyle="--")
    best = _best(rows)
    if best:
        epoch, value, _ = best
        axes.plot([epoch], [value], "o", color=RED, markersize=7, markerfacecolor="white", markeredgewidth=1.5)
        axes.annotate(f"{value:.2f}", (epoch, value), (-4, -17), textcoords="offset points", ha="center", color=RED)


def _draw_rate(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    axes.set_title("learning rate", **TITLE, color=BLUE)
    axes.set_title("norm of the gradient", **TITLE | {"loc": "right"}, color=ORANGE)
    _line(axes, rows, "train/lr", color=BLUE)
    axes.set_ylim(bottom=0)
    epochs, norms = _curve(rows, "train/grad_norm")
    norm_axes = axes.twinx()
    norm_axes.plot(epochs, _mean(norms), color=ORANGE, linewidth=1)
    norm_axes.set_ylim(bottom=0)
    norm_axes.tick_params(colors=ORANGE, length=0, labelsize=9)
    norm_axes.spines[:].set_visible(False)


def _draw_speed(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    axes.set_title("images/s", **TITLE, color=BLUE)
    axes.set_title("time spent waiting for data", **TITLE | {"loc": "right"}, color=ORANGE)
    _noisy_line(axes, rows, "train/images_per_second", None)
    axes.set_ylim(bottom=0)
    epochs, shares = _curve(rows, "train/data_wait")
    share_axes = axes.twinx()
    share_axes.fill_between(epochs, 100 * _mean(shares), color=ORANGE, alpha=0.3, linewidth=0)
    share_axes.set_ylim(0, 100)
    share_axes.yaxis.set_major_formatter("{x:.0f} %")
    share_axes.tick_params(colors=ORANGE, length=0, labelsize=9)
    share_axes.spines[:].set_visible(False)


def _line(axes: "Axes", rows: list[dict[str, Any]], key: str, **look: Any) -> None:
    epochs, values = _curve(rows, key)
    if values:
        axes.plot(epochs, values, marker="o" if len(values) == 1 else None, markersize=4, **look)


def _noisy_line(axes: "Axes", rows: list[dict[str, Any]], key: str, label: str | None) -> None:
    """The mean over the neighbours, in front of what was measured."""
    epochs, values = _curve(rows, key)
    axes.plot(epochs, values, color=BLUE, linewidth=0.6, alpha=0.3)
    axes.plot(epochs, _mean(values), marker="o" if len(values) == 1 else None, markersize=4, color=BLUE, label=label)


def _dress(axes: "Axes", last_epoch: float) -> None:
    """What all four have in common."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1.02 * (last_epoch or 1))
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.tick_params(colors=GREY, labelsize=9)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)


def _headline(name: str, rows: list[dict[str, Any]]) -> str:
    name = name if len(name) <= 60 else f"{name[:59]}…"
    if not rows:
        return name
    text = f"{name}  ·  epoch {rows[-1]['epoch']:.4g}  ·  step {rows[-1]['step']:,}"
    best = _best(rows)
    return f"{text}  ·  best top-1 {best[1]:.2f} % ({best[2]}, epoch {best[0]:.4g})" if best else text


def _best(rows: list[dict[str, Any]]) -> tuple[float, float, str] | None:
    """Epoch, value and weights of the best top-1."""
    found = [
        (row["epoch"], row[key], weights)
        for row in rows
        for key, weights in (("val/top1", "raw"), ("val/top1_ema", "EMA"))
        if row.get(key) is not None
    ]
    return max(found, key=lambda point: point[1], default=None)


def _curve(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the records that have `key`; a null is a gap."""
    points = [(row["epoch"], math.nan if row[key] is None else row[key]) for row in rows if key in row]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _mean(values: list[float]) -> "np.ndarray":
    """The mean over the neighbours on both sides, a fiftieth of the points together; gaps count for nothing."""
    import numpy as np

    known = ~np.isnan(np.asarray(values, dtype=float))
    sums = np.cumsum(np.concatenate([[0.0], np.where(known, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], known]))
    at, reach = np.arange(len(values)), len(values) // 100
    first, end = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    with np.errstate(invalid="ignore"):  # 0 / 0 where there are only gaps
        return (sums[end] - sums[first]) / (counts[end] - counts[first])
