"""The page of an evaluation of a detector or a segmenter, from the files in its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cotnet.errors import InputError
from cotnet.evaluation.dense_files import CONFUSION, PICTURES
from cotnet.headline import NAMES
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
from cotnet.pages.read import WIDE, picture, read_csv, read_json
from cotnet.reporting.terminal import clock

COMMON: Final = {"head", "checkpoint", "weights", "images", "data_root"}
NEEDED: Final = {
    "detection": COMMON | {"box_ap", "box_ap50", "box_ap75", "categories"},
    "segmentation": COMMON | {"miou", "pixel_accuracy", "class_accuracy", "classes"},
}
HEADLINE: Final = {  # figures that are shown large, as far as they are there
    "detection": ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"),
    "segmentation": ("miou", "pixel_accuracy", "class_accuracy"),
}
WORDS: Final = {**NAMES, "class_accuracy": "class accuracy"} | {
    f"{kind}_{key}": f"{kind} {key.upper()}" for kind in ("box", "mask") for key in ("ap", "ap50", "ap75")
}
COCO_FIGURES: Final = {
    "ap": "AP, mean over IoU 0.50 to 0.95",
    "ap50": "AP at IoU 0.50",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP, small objects (below 32² pixels)",
    "ap_medium": "AP, medium objects",
    "ap_large": "AP, large objects (above 96² pixels)",
    "ar1": "AR, 1 detection per image",
    "ar10": "AR, 10 detections per image",
    "ar100": "AR, 100 detections per image",
    "ar_small": "AR, small objects",
    "ar_medium": "AR, medium objects",
    "ar_large": "AR, large objects",
}
BARS: Final = 40  # classes in a chart; of more, the best and the worst half as many
CELLS: Final = 30  # classes in a drawn confusion matrix
PAIRS: Final = 200  # confused pairs that are listed


def dense_page(folder: Path, content: Mapping[str, Any]) -> Page:
    """The page of `content`, the metrics.json in `folder`. Raises InputError if a file is damaged."""
    task = str(content["task"])
    if task not in NEEDED:
        raise InputError(f"{folder / 'metrics.json'}: task={task} is none of {', '.join(NEEDED)}; evaluate again")
    if lacking := sorted(NEEDED[task] - content.keys()):
        raise InputError(f"{folder / 'metrics.json'} lacks {', '.join(lacking)}; evaluate again")
    detection = task == "detection"
    result = [headline(content), *remarks(content), *(coco_figures(content) if detection else [])]
    each = content["categories" if detection else "classes"]
    sections = [
        PageSection(title="Result", blocks=result),
        PageSection(title="Pictures", blocks=pictures(folder, detection=detection)),
        PageSection(title="Categories" if detection else "Classes", blocks=by_class(each, detection=detection)),
        PageSection(title="Confusion", blocks=[] if detection else confusion(folder)),
        PageSection(title="Settings", blocks=settings(content)),
    ]
    title = f"{content['checkpoint']} ({content['weights']}), {content['head']}"
    return Page(title=title, kind="evaluation", sections=[one for one in sections if one.blocks])


def headline(given: Mapping[str, Any]) -> Tiles:
    """The figures that papers report, and how many images they are of."""
    tiles = [
        Tile(name=WORDS[key], value="–" if given[key] is None else f"{given[key]:.2f} %")
        for key in HEADLINE[given["task"]]
        if key in given
    ]
    tiles.append(Tile(name="images", value=f"{given['images']:,}"))
    if given.get("duration") is not None:
        tiles.append(Tile(name="time", value=clock(given["duration"])))
    if given.get("parameters") is not None:
        tiles.append(Tile(name="parameters", value=f"{given['parameters'] / 1e6:.2f} M"))
    return Tiles(tiles=tiles)


def remarks(given: Mapping[str, Any]) -> list[Block]:
    """What was left out of the set."""
    dropped = {name: count for name, count in given.get("dropped", {}).items() if count}
    lines = ["Left out: " + ", ".join(f"{count:,} {name}" for name, count in dropped.items()) + "."] if dropped else []
    return [Remarks(title="Read this", lines=lines)] if lines else []


def coco_figures(given: Mapping[str, Any]) -> list[Block]:
    """COCO's twelve figures of boxes and, if there are any, of masks."""
    kinds = [kind for kind in ("box", "mask") if f"{kind}_ap" in given]
    rows = [[words, *(given.get(f"{kind}_{key}") for kind in kinds)] for key, words in COCO_FIGURES.items()]
    note = "AP: average precision, AR: average recall, means over categories. A dash: the set has no such object."
    columns = [*texts("figure"), *numbers(".2f", *(f"{kind} %" for kind in kinds))]
    return [DataTable(title="COCO's figures", columns=columns, rows=rows, note=note)]


def pictures(folder: Path, *, detection: bool) -> list[Block]:
    """What was found beside the truth, if evaluate.py drew it."""
    path = folder / PICTURES
    if not path.exists():
        return []
    shown = [
        Picture(source=picture(path.parent / one["png"], WIDE), alt=one["alt"], lines=[one["file"]])
        for one in read_json(path).get("pictures", [])
    ]
    note = (
        "Detections with a score of at least 0.5. Dashed: no object, or no detection, of the same class overlaps by an "
        "IoU of 0.5."
        if detection
        else "The right part shows wrong pixels in red; pale ones have no label."
    )
    return [Gallery(title="Beside the truth", pictures=shown, note=note, wide=True)] if shown else []


def by_class(each: Sequence[Mapping[str, Any]], *, detection: bool) -> list[Block]:
    """A chart of the main figure of each class, and a table of all."""
    main, word = ("box_ap", "box AP") if detection else ("iou", "IoU")
    heads = {"box_ap": "box AP %", "mask_ap": "mask AP %", "iou": "IoU %", "accuracy": "accuracy %"}
    keys = [key for key in heads if each and key in each[0]]
    known = sorted((one for one in each if one[main] is not None), key=lambda one: -one[main])
    if not known:
        return []
    some = known if len(known) <= BARS else known[: BARS // 2] + known[-BARS // 2 :]
    title = f"{word} of each class" if some is known else f"{word} of the best and the worst {BARS // 2} classes"
    best, worst = known[0], known[-1]
    alt = f"{title}: from {best['name']}, {best[main]:.1f} %, down to {worst['name']}, {worst[main]:.1f} %."
    spec = charts.bars([(one["name"], one[main]) for one in some], x=f"{word}, %", alt=alt, form=".1f")
    rows = [[one["name"], *(one[key] for key in keys)] for one in each]
    columns = [*texts("class"), *numbers(".1f", *(heads[key] for key in keys))]
    return [
        Chart(title=title, spec=spec, alt=alt, wide=True),
        DataTable(title="Each class", columns=columns, rows=rows),
    ]


def confusion(folder: Path) -> list[Block]:
    """Which classes are taken for which, from confusion.csv. Raises InputError if it is damaged."""
    path = folder / CONFUSION
    try:
        rows = {
            row["class"]: {name: int(cell) for name, cell in row.items() if name != "class"} for row in read_csv(path)
        }
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: is no table of pixels by class; remove it or evaluate again") from None
    counted = {name: sum(row.values()) for name, row in rows.items()}
    cells = [
        (other, name, pixels / counted[name], pixels)
        for name, row in rows.items()
        for other, pixels in row.items()
        if counted[name]
    ]
    wrong = sorted((cell for cell in cells if cell[0] != cell[1] and cell[3]), key=lambda cell: -cell[2])
    blocks: list[Block] = []
    if cells and len(rows) <= CELLS:
        alt = "Share of each class's pixels by predicted class." + (
            f" The most confused: {wrong[0][2]:.1%} of {wrong[0][1]} are taken for {wrong[0][0]}." if wrong else ""
        )
        spec = charts.heatmap(cells, x="predicted", y="truth", names=list(rows), count="pixels", alt=alt)
        blocks.append(Chart(title="Confusion of classes", spec=spec, alt=alt, wide=True))
    if wrong:
        columns = [*texts("class", "taken for"), *numbers(".1%", "share of the class"), *numbers(",", "pixels")]
        listed: list[list[Any]] = [[name, other, share, pixels] for other, name, share, pixels in wrong[:PAIRS]]
        note = f"The first {PAIRS} of {len(wrong):,} pairs." if len(wrong) > PAIRS else ""
        blocks.append(DataTable(title="Confused classes", columns=columns, rows=listed, note=note))
    return blocks


def settings(given: Mapping[str, Any]) -> list[Block]:
    """What the figures depend on."""
    keys = ("checkpoint", "weights", "weights_checksum", "task", "head", "data_root", "image_set")
    rows = [(key, str(given[key])) for key in keys if key in given]
    rows += [(key, str(value)) for key, value in given.get("settings", {}).items()]
    return [DataTable(title="Settings", columns=texts("setting", "value"), rows=rows)]
