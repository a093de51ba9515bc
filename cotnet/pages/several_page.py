"""The page of one model on several sets or at several sizes."""

from pathlib import Path
from typing import Any

from cotnet.pages import charts
from cotnet.pages.blocks import Block, Chart, DataTable, Page, PageSection, Tile, Tiles, numbers, texts
from cotnet.pages.charts import Interval


def several_page(folder: Path, content: dict[str, Any]) -> Page:
    """A row for each evaluation of `content`, a metrics.json in `folder`, beside the published figures."""
    found = {name: one for name, one in content["evaluations"].items() if "top1" in one}
    blocks = [*corruption_error(content), *accuracy(found), table(folder, found)]
    sections = [PageSection(title="Result", blocks=blocks)]
    if corrupted := {name: one["top1_by_severity"] for name, one in found.items() if "top1_by_severity" in one}:
        sections.append(PageSection(title="ImageNet-C", blocks=[by_strength(corrupted)]))
    title = f"{content['checkpoint']}: {len(content['evaluations'])} evaluations"
    return Page(title=title, kind="evaluation", sections=sections)


def corruption_error(content: dict[str, Any]) -> list[Block]:
    """The mean corruption error at each size, once it is known."""
    errors = content.get("mce", {})
    tiles = [Tile(name=f"mean corruption error, {size} px", value=f"{value:.2f} %") for size, value in errors.items()]
    return [Tiles(tiles=tiles)] if tiles else []


def accuracy(found: dict[str, dict[str, Any]]) -> list[Block]:
    """Top-1 on each set with its interval, and the published figures."""
    points = []
    for name, one in found.items():
        low, high = one["top1_interval"]
        points.append(Interval(name, one["top1"], low, high, "this model"))
        points += [
            Interval(name, ref["top1"], kind=f"published: {ref['model']}") for ref in one.get("published", [])[:2]
        ]
    if not points:
        return []
    figures = "; ".join(f"{name} {one['top1']:.2f} %" for name, one in list(found.items())[:20])
    alt = f"Top-1 of {len(found)} evaluations with 95 % intervals: {figures}"
    spec = charts.estimates(points, x="top-1, %", alt=alt)
    return [Chart(title="Accuracy on each set", spec=spec, alt=alt, wide=True)]


def table(folder: Path, found: dict[str, dict[str, Any]]) -> DataTable:
    """The figures of each evaluation; its name links to its page."""
    rows: list[list[Any]] = []
    for name, one in found.items():
        published = (one.get("published") or [{}])[0]
        size, interval = one["settings"]["eval_size"], one["top1_interval"]
        reference = (published.get("top1"), published.get("model", ""))
        rows.append([name, one["set"], size, one["top1"], *interval, one["top5"], one["ece"], *reference])
    columns = [*texts("evaluation", "set"), *numbers(",", "px"), *numbers(".2f", "top-1 %", "from", "to", "top-5 %")]
    columns += [*numbers(".4f", "ECE"), *numbers(".2f", "published top-1 %"), *texts("of")]
    links = [f"{name}/report.html" if (folder / name).is_dir() else "" for name in found]
    return DataTable(title="Evaluations", columns=columns, rows=rows, links=links)


def by_strength(corrupted: dict[str, dict[str, float]]) -> DataTable:
    """Top-1 at each strength of each corruption."""
    strengths = sorted({key for found in corrupted.values() for key in found})
    rows = [[name, *(found.get(key) for key in strengths)] for name, found in corrupted.items()]
    columns = [*texts("corruption"), *numbers(".2f", *(f"strength {key}" for key in strengths))]
    return DataTable(title="Top-1 by strength, %", columns=columns, rows=rows)
