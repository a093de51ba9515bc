"""The page of an evaluation, from the files in its folder: one set at one size, or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from cotnet.errors import InputError
from cotnet.evaluation import predictions
from cotnet.evaluation.predictions import Predictions
from cotnet.pages import charts
from cotnet.pages.blocks import (
    Block,
    Chart,
    Column,
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
from cotnet.pages.read import WIDE, picture, read_csv, read_json
from cotnet.pages.several_page import several_page
from cotnet.pages.zoo import among_the_zoo

METRICS: Final = "metrics.json"
NEEDED: Final = {"checkpoint", "weights", "set", "images", "images_in_set", "settings"}
MISTAKES: Final = 24  # most confident mistakes that are shown
PAIRS, OF_PAIR = 8, 3  # most confused pairs that are shown, and images of each
PAIRS_LISTED: Final = 500
PLACES: Final = (1, 2, 3)  # predictions that are shown of an image without label


@dataclass(frozen=True, kw_only=True)
class EvaluationFiles:
    """What the folder of one evaluation says."""

    folder: Path
    figures: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.figures['checkpoint']} ({self.figures['weights']}), {self.figures['set']}"

    @property
    def labelled(self) -> bool:
        return "top1" in self.figures

    @cached_property
    def table(self) -> Predictions | None:
        """The predictions, if they were written as CSV and have labels."""
        path = self.folder / "predictions.csv"
        return predictions.read(path) if self.labelled and path.exists() else None

    @cached_property
    def names(self) -> list[str]:
        """What people call each class of the model."""
        return [row["words"] for row in read_csv(self.folder / "classes.csv")]

    def word(self, number: int) -> str:
        """What people call a class; -1 stands for several labels."""
        if number < 0:
            return "one of several"
        return self.names[number] if number < len(self.names) else str(number)

    def image(self, file: str) -> Path:
        return Path(self.figures.get("image_folder", "")) / file


def evaluation_page(folder: Path) -> Page:
    """The page of the evaluation in `folder`. Raises InputError if a file is damaged."""
    content = read_json(folder / METRICS)
    if "evaluations" in content:
        return several_page(folder, content)
    if lacking := sorted(NEEDED - content.keys()):
        raise InputError(
            f"{folder / METRICS} lacks {', '.join(lacking)}, as an earlier version wrote it; evaluate again"
        )
    found = EvaluationFiles(folder=folder, figures=content)
    sections = [PageSection(title="Result", blocks=[headline(found), *remarks(found)])]
    if found.labelled:
        sections += [
            PageSection(title="Mistakes", blocks=[*mistakes(found), *looks(found)]),
            PageSection(title="Classes", blocks=[*per_class(found), *confusions(found)]),
            PageSection(title="Calibration", blocks=[reliability(content)]),
            PageSection(title="Speed", blocks=among_the_zoo(content, found.title)),
        ]
    else:
        sections.append(PageSection(title="Predictions", blocks=unlabelled(found)))
    sections.append(PageSection(title="Settings", blocks=settings(found)))
    return Page(title=found.title, kind="evaluation", sections=[one for one in sections if one.blocks])


def headline(found: EvaluationFiles) -> Tiles:
    """Accuracy with intervals, calibration, cost."""
    given, tiles = found.figures, []
    for key, title in (("top1", "top-1"), ("top5", "top-5")):
        if key in given:
            low, high = given[f"{key}_interval"]
            tiles.append(Tile(name=title, value=f"{given[key]:.2f} %", note=f"{low:.2f} to {high:.2f} over images"))
    for one in given.get("published", [])[:1]:
        tiles.append(Tile(name="published top-1", value=f"{one['top1']:.2f} %", note=one["model"]))
    tiles.append(Tile(name="images", value=f"{given['images']:,}", note=f"of {given['images_in_set']:,}"))
    for key, title, form in (
        ("loss", "loss", ".4f"),
        ("ece", "ECE", ".4f"),
        ("images_per_second", "images/s", ",.0f"),
        ("latency_ms_p50", "latency, ms", ".2f"),
    ):
        if given.get(key) is not None:
            note = given.get("device", "") if key == "latency_ms_p50" else ""
            tiles.append(Tile(name=title, value=format(given[key], form), note=note))
    if "parameters" in given:
        note = f"{given['multiply_adds'] / 1e9:.2f} G multiply-adds"
        tiles.append(Tile(name="parameters", value=f"{given['parameters'] / 1e6:.2f} M", note=note))
    return Tiles(tiles=tiles)


def remarks(found: EvaluationFiles) -> list[Block]:
    """What a reader must know before quoting the figures."""
    given = found.figures
    lines = ["The intervals are over images: another sample of images. Two trainings of one recipe differ as well."]
    if given.get("missing"):
        lines.append(f"{len(given['missing'])} images do not decode and are not counted.")
    if given.get("classes", "all") != "all":
        lines.append(f"Only some of the model's classes are among the images: {given['classes']}.")
    if "comparable" in given:
        lines.append(f"Comparable with published figures: {given['comparable']}.")
    return [Remarks(title="Read this", lines=lines)] if found.labelled else []


def mistakes(found: EvaluationFiles) -> list[Block]:
    """The wrong predictions of which the model was surest."""
    table = found.table
    if table is None:
        return [Remarks(title="Mistakes", lines=["predictions.csv is missing: evaluate with predictions=[csv]"])]
    wrong = np.flatnonzero(~table.correct)
    if not len(wrong):
        return [Remarks(title="Mistakes", lines=["There are none."])]
    order = wrong[np.argsort(-table.confidence[wrong], kind="stable")][:MISTAKES]
    pictures = [shown_image(found, table, int(row)) for row in order]
    note = f"{len(order)} of {len(wrong):,} mistakes, the most confident first."
    return [Gallery(title="Most confident mistakes", pictures=pictures, note=note + _lost(pictures))]


def shown_image(found: EvaluationFiles, table: Predictions, row: int, *more: str) -> Picture:
    """An image with its label and its prediction."""
    file, label, best = table.files[row], found.word(int(table.labels[row])), found.word(int(table.best[row, 0]))
    lines = [*more, f"label: {label}", f"predicted: {best}, {table.confidence[row]:.2f}", file]
    alt = f"{file}, labelled {label}, predicted {best} with probability {table.confidence[row]:.2f}"
    return Picture(source=picture(found.image(file)), alt=alt, lines=lines)


def _lost(pictures: Sequence[Picture]) -> str:
    lost = sum(not one.source for one in pictures)
    return f" {lost} of these images were not found or cannot be read." if lost else ""


def looks(found: EvaluationFiles) -> list[Block]:
    """Where the network looks in its worst mistakes, if evaluate.py drew it."""
    path = found.folder / "look" / "look.json"
    if not path.exists():
        return []
    pictures = []
    for one in read_json(path).get("pictures", []):
        lines = [
            f"label: {found.word(one['label'])}, predicted: {found.word(one['top1'])}, {one['p1']:.2f}",
            one["file"],
        ]
        pictures.append(Picture(source=picture(path.parent / one["png"], WIDE), alt=one["alt"], lines=lines))
    note = "Grad-CAM of the predicted class, and what the backbone's own operator listens to."
    return [Gallery(title="Where the network looks", pictures=pictures, note=note, wide=True)] if pictures else []


def per_class(found: EvaluationFiles) -> list[Block]:
    """Every class with its interval, the worst first."""
    rows = read_csv(found.folder / "per_class.csv")
    if not rows:
        return []
    rows.sort(key=lambda row: float(row["top1"]))
    forms = {"images": ",", "correct": ",", "top1": ".1f", "top1_low": ".1f", "top1_high": ".1f", "top5": ".1f"}
    keys = list(rows[0])
    headings = {"top1": "top-1 %", "top1_low": "from", "top1_high": "to", "top5": "top-5 %", "words": "name"}
    headings |= {f"confused{place}": f"taken for, {place}" for place in (1, 2, 3)}
    columns = [Column(heading=headings.get(key, key), form=forms.get(key, "")) for key in keys]
    kinds = {key: int if form == "," else float for key, form in forms.items()}
    cells: list[list[Any]] = [[kinds[key](row[key]) if key in kinds else row[key] for key in keys] for row in rows]
    return [DataTable(title="Each class", columns=columns, rows=cells)]


def confusions(found: EvaluationFiles) -> list[Block]:
    """The most confused pairs, with images of the first ones."""
    rows, table = read_csv(found.folder / "confusions.csv"), found.table
    if not rows:
        return []
    columns = [*texts("label", "predicted"), *numbers(",", "images"), *numbers(".1%", "share of the class")]
    cells: list[list[Any]] = [
        [row["label_words"], row["predicted_words"], int(row["images"]), float(row["share"])]
        for row in rows[:PAIRS_LISTED]
    ]
    note = f"The first {PAIRS_LISTED} of {len(rows):,} pairs." if len(rows) > PAIRS_LISTED else ""
    blocks: list[Block] = [DataTable(title="Confused pairs", columns=columns, rows=cells, note=note)]
    if table is None:
        return blocks
    pictures: list[Picture] = []
    words = {(int(label), int(best)): None for label, best in zip(table.labels, table.best[:, 0], strict=True)}
    pairs = {(found.word(a), found.word(b)): (a, b) for a, b in words if a != b}
    for row in rows[:PAIRS]:
        pair = pairs.get((row["label_words"], row["predicted_words"]))
        if pair is None:
            continue
        both = np.flatnonzero((table.labels == pair[0]) & (table.best[:, 0] == pair[1]))
        surest = both[np.argsort(-table.confidence[both], kind="stable")][:OF_PAIR]
        count = f"{row['label_words']} → {row['predicted_words']} ({row['images']} times)"
        pictures += [shown_image(found, table, int(one), count) for one in surest]
    gallery = Gallery(title="Images of the most confused pairs", pictures=pictures, note=_lost(pictures).strip())
    return [gallery, *blocks] if pictures else blocks


def reliability(given: dict[str, Any]) -> Chart:
    """Accuracy against confidence."""
    bins = given["reliability"]
    alt = (
        f"Reliability: accuracy against mean confidence in {sum(1 for one in bins if one['images'])} bins that hold "
        f"images; the expected calibration error is {given['ece']:.4f}."
    )
    return Chart(title="Reliability diagram", spec=charts.reliability(bins, alt=alt), alt=alt)


def unlabelled(found: EvaluationFiles) -> list[Block]:
    """The predictions of images without labels."""
    rows = read_csv(found.folder / "predictions.csv")
    columns = texts("file")
    for place in PLACES:
        columns += [*texts(f"class {place}"), *numbers(".3f", f"p{place}")]
    cells: list[list[Any]] = [[row["file"]] for row in rows[:PAIRS_LISTED]]
    for cell, row in zip(cells, rows, strict=False):
        for place in PLACES:
            cell += [row.get(f"class{place}") or row[f"top{place}"], float(row[f"p{place}"])]
    pictures = [
        Picture(
            source=picture(found.image(row["file"])),
            alt=f"{row['file']}, predicted {row.get('class1') or row['top1']}",
            lines=[row.get("class1") or row["top1"], f"{float(row['p1']):.2f}", row["file"]],
        )
        for row in rows[:MISTAKES]
    ]
    return [
        Gallery(title="First images", pictures=pictures, note=_lost(pictures).strip()),
        DataTable(title="Predictions", columns=columns, rows=cells),
    ]


def settings(found: EvaluationFiles) -> list[Block]:
    """What the figures depend on."""
    given = found.figures
    keys = ("checkpoint", "weights", "weights_checksum", "set", "image_set", "classes")
    rows = [(key, str(given.get(key))) for key in keys] + [
        (key, str(value)) for key, value in given["settings"].items()
    ]
    return [DataTable(title="Settings", columns=texts("setting", "value"), rows=rows)]
