"""The page of comparison.json: what differs between two evaluations of the same images."""

from pathlib import Path
from typing import Any, Final

from cotnet.errors import InputError
from cotnet.pages import charts
from cotnet.pages.blocks import (
    Block,
    Chart,
    DataTable,
    Gallery,
    Page,
    PageSection,
    Picture,
    Remarks,
    Tile,
    Tiles,
    numbers,
    texts,
)
from cotnet.pages.charts import Interval
from cotnet.pages.evaluation_page import METRICS, EvaluationFiles
from cotnet.pages.read import picture, read_csv, read_json

COMPARISON: Final = "comparison.json"
FLIPPED: Final = 24  # images that are shown in each direction


def comparison_page(path: Path) -> Page:
    """The page of a comparison.json. Raises InputError if it is damaged."""
    found = read_json(path).get("comparisons")
    if not isinstance(found, list) or not found:
        raise InputError(f"{path}: holds no comparison; compare again")
    first = found[0]
    title = f"{first['a']} against {first['b']}" if len(found) == 1 else f"{len(found)} comparisons"
    sections = [PageSection(title="Overview", blocks=overview(found))] if len(found) > 1 else []
    for one in found:
        name = f"{one['a']} against {one['b']}" + (f", {one['set']}" if one.get("set") else "")
        sections.append(PageSection(title=name, blocks=comparison(one)))
    return Page(title=title, kind="comparison", sections=sections)


def overview(found: list[dict[str, Any]]) -> list[Block]:
    """The difference of every two, with its interval."""
    rows = [
        Interval(
            f"{one['a']} - {one['b']} {one.get('set', '')}".strip(), one["top1"]["difference"], *one["top1"]["interval"]
        )
        for one in found
    ]
    alt = "Difference in top-1 with 95 % intervals: " + "; ".join(f"{row.name} {row.value:+.2f}" for row in rows[:20])
    spec = charts.estimates(rows, x="difference in top-1, percentage points", alt=alt)
    return [Chart(title="Difference in top-1", spec=spec, alt=alt, wide=True)]


def comparison(one: dict[str, Any]) -> list[Block]:
    """One comparison: the difference with its interval, classes that differ, images that flipped."""
    top1, images = one["top1"], one["images"]
    low, high = top1["interval"]
    tiles = [
        Tile(name="top-1, A", value=f"{top1['a']:.2f} %", note=one["a"]),
        Tile(name="top-1, B", value=f"{top1['b']:.2f} %", note=one["b"]),
        Tile(
            name="A minus B",
            value=f"{top1['difference']:+.2f} points",
            note=f"{low:+.2f} to {high:+.2f} over {images:,} images",
        ),
        Tile(name="McNemar's p", value=f"{top1['mcnemar_p']:.2g}"),
        Tile(name="only A right", value=f"{top1['only_a_right']:,}", note="images"),
        Tile(name="only B right", value=f"{top1['only_b_right']:,}", note="images"),
    ]
    tiles += [
        Tile(
            name=f"{key.upper()}, A minus B",
            value=f"{one[key]['difference']:+.4f}",
            note="{:+.4f} to {:+.4f}".format(*one[key]["interval"]),
        )
        for key in ("ece", "nll")
        if key in one
    ]
    return [
        Tiles(tiles=tiles),
        Remarks(title="Read this", lines=[f"Intervals are {one['intervals']}."]),
        *flipped(one),
        *classes(one),
    ]


def evaluated(one: dict[str, Any], side: str) -> EvaluationFiles | None:
    """The evaluation A or B, if its folder is still there."""
    folder = Path(dict(zip("ab", one.get("folders", ("", "")), strict=True))[side])
    return EvaluationFiles(folder=folder, figures=read_json(folder / METRICS)) if (folder / METRICS).exists() else None


def flipped(one: dict[str, Any]) -> list[Block]:
    """Images that only one of the two has right."""
    found, blocks = evaluated(one, "a"), []
    for side, other, name in (("a", "b", one["a"]), ("b", "a", one["b"])):
        rows = [row for row in one["flipped"] if row["right"] == side]
        pictures = []
        for row in rows[:FLIPPED]:
            label, wrong = (
                found.word(number) if found else str(number) for number in (row["label"], row[f"top1_{other}"])
            )
            source = picture(found.image(row["file"])) if found else ""
            alt = f"{row['file']}: {label}, which the other takes for {wrong}"
            pictures.append(
                Picture(source=source, alt=alt, lines=[f"label: {label}", f"the other: {wrong}", row["file"]])
            )
        if pictures:
            note = f"{len(pictures)} of {len(rows):,} images."
            blocks.append(Gallery(title=f"Only {side.upper()} is right ({name})", pictures=pictures, note=note))
    return list(blocks)


def classes(one: dict[str, Any]) -> list[Block]:
    """Top-1 of each class in both, the largest difference first."""
    both = [evaluated(one, side) for side in "ab"]
    tables = [
        {row["class"]: row for row in read_csv(found.folder / "per_class.csv")} if found else {} for found in both
    ]
    common = [key for key in tables[0] if key in tables[1]]
    if not common:
        return []
    rows: list[list[Any]] = []
    for key in common:
        a, b = (float(table[key]["top1"]) for table in tables)
        rows.append([tables[0][key]["words"], a, b, a - b, int(tables[0][key]["images"])])
    rows.sort(key=lambda row: -abs(row[3]))
    columns = [*texts("class"), *numbers(".1f", "A, top-1 %", "B, top-1 %"), *numbers("+.1f", "A minus B")]
    columns += numbers(",", "images")
    return [DataTable(title="Each class", columns=columns, rows=rows)]
