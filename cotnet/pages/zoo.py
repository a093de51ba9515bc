"""A model of ImageNet among the zoo: accuracy against multiply-adds and against latency."""

import json
from typing import Any, Final

from cotnet.models.table import TABLE
from cotnet.pages import charts
from cotnet.pages.blocks import Block, Chart
from cotnet.reporting.environment import CODE

LATENCIES: Final = CODE / "docs" / "zoo.json"  # written by cotnet.benchmarks.nets
OURS: Final = "this evaluation"
CLASSES: Final = 1000


def among_the_zoo(given: dict[str, Any], name: str) -> list[Block]:
    """The charts of an evaluation's figures, called `name`; none for other classes than ImageNet's."""
    if given["settings"]["label_space"] != CLASSES or "multiply_adds" not in given:
        return []
    ours = {"y": given["top1"], "name": name, "kind": OURS}
    adds: list[dict[str, Any]] = [
        {"x": row.multiply_adds, "y": row.top1, "name": f"{model}, {side} px", "kind": "published"}
        for (model, side), row in TABLE.items()
        if row and row.multiply_adds and row.top1
    ]
    adds.append({"x": given["multiply_adds"] / 1e9, **ours})
    where = (
        f"this evaluation at {adds[-1]['x']:.2f} G and {given['top1']:.2f} %, among {len(adds) - 1} published models"
    )
    return [_chart("multiply-adds, G", adds, where), *_latency(given, ours)]


def _latency(given: dict[str, Any], ours: dict[str, Any]) -> list[Block]:
    """The zoo's latencies are of one machine; an evaluation on another one is left out, and the chart says so."""
    if not LATENCIES.exists():
        return []
    measured = json.loads(LATENCIES.read_bytes())
    machine = measured["machine"]
    device = (machine["gpus"] or [machine["processor"]])[0]
    rows: list[dict[str, Any]] = []
    for one in measured["records"]:
        published = TABLE.get((one["name"], one["size"]))
        if published and published.top1 and not one.get("cpu_time"):
            title = f"{one['name']}, {one['size']} px"
            rows.append({"x": one["milliseconds"], "y": published.top1, "name": title, "kind": "published"})
    where = f"{len(rows)} published models on {device}"
    if given.get("device") == device:
        rows.append({"x": given["latency_ms_p50"], **ours})
        where = f"this evaluation at {given['latency_ms_p50']:.1f} ms and {given['top1']:.2f} %, among {where}"
    else:
        where += f"; this evaluation ran on {given.get('device', 'another machine')} and is not drawn"
    return [_chart("latency of one image, ms", rows, where)]


def _chart(x: str, rows: list[dict[str, Any]], where: str) -> Chart:
    title, alt = f"Accuracy against {x.partition(',')[0]}", f"Top-1 against {x}: {where}."
    spec = charts.scatter(rows, x=x, y="top-1, %", color="kind", alt=alt, log=True)
    return Chart(title=title, spec=spec, alt=alt)
