"""The page of one model on several sets or at several sizes."""

import os
from pathlib import Path
from typing import Any

from cotnet.pages import charts
from cotnet.pages.blocks import Block, Chart, DataTable, Page, Section, Tile, Tiles, numbers, texts
from cotnet.pages.charts import Estimate


def several_page(folder: Path, content: dict[str, Any]) -> Page:
    """Several sets or sizes of one model: a row each, beside the published figures."""
    rows: list[list[Any]] = []
    links, points = [], []
    for name, one in content["evaluations"].items():
        if "top1" not in one:
            continue
        low, high = one["top1_interval"]
        published = (one.get("published") or [{}])[0]
        rows.append([name, one["set"], one["settings"]["eval_size"], one["top1"], low, high, one["top5"], one["ece"],
                     published.get("top1"), published.get("model", "")])  # fmt: skip
        links.append(os.path.join(name, "report.html") if (folder / name / "metrics.json").exists() else "")  # noqa: PTH118
        points.append(Estimate(name, one["top1"], low, high, "this model"))
        points += [
            Estimate(name, ref["top1"], kind=f"published: {ref['model']}") for ref in one.get("published", [])[:2]
        ]
    columns = [*texts("evaluation", "set"), *numbers(",", "px"), *numbers(".2f", "top-1 %", "from", "to", "top-5 %")]
    columns += [*numbers(".4f", "ECE"), *numbers(".2f", "published top-1 %"), *texts("of")]
    blocks: list[Block] = []
    tiles = [
        Tile(name=f"mean corruption error, {size} px", value=f"{value:.2f} %")
        for size, value in content.get("mce", {}).items()
    ]
    if tiles:
        blocks.append(Tiles(tiles=tiles))
    if points:
        alt = f"Top-1 of {len(rows)} evaluations with 95 % intervals: " + "; ".join(
            f"{row[0]} {row[3]:.2f} %" for row in rows[:20]
        )
        blocks.append(
            Chart(
                title="Accuracy on each set", spec=charts.estimates(points, x="top-1, %", alt=alt), alt=alt, wide=True
            )
        )
    blocks.append(DataTable(title="Evaluations", columns=columns, rows=rows, links=links))
    sections = [Section(title="Result", blocks=blocks)]
    corrupted = [
        (name, one["top1_by_severity"]) for name, one in content["evaluations"].items() if "top1_by_severity" in one
    ]
    if corrupted:
        strengths = sorted({key for _, found in corrupted for key in found})
        table = [[name, *(found.get(key) for key in strengths)] for name, found in corrupted]
        heads = [*texts("corruption"), *numbers(".2f", *(f"strength {key}" for key in strengths))]
        sections.append(
            Section(title="ImageNet-C", blocks=[DataTable(title="Top-1 by strength, %", columns=heads, rows=table)])
        )
    return Page(
        title=f"{content['checkpoint']}: {len(content['evaluations'])} evaluations",
        kind="evaluation",
        sections=sections,
    )
