"""Vega-Lite specifications as plain dictionaries: a test compares their values with the files they come from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cotnet.figures import BLUE, GREEN, ORANGE, RED

COLORS: Final = (BLUE, ORANGE, GREEN, RED, "#8c6bb1", "#c05a9d")
MOST: Final = 1000  # points of a line; of more, the mean of neighbours is drawn
DOTS: Final = 60  # up to so many points of a line are drawn as dots
HEIGHT: Final = 220
MARGIN: Final = 10  # pixels around the outermost points

Line = Sequence[tuple[float, float | None]]
Spec = dict[str, Any]


class Mark(NamedTuple):
    """A vertical line at `x` with a text."""

    x: float
    text: str


class Interval(NamedTuple):
    """A value with its interval; `low` and `high` may be None."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    kind: str = ""


def lines(
    series: Mapping[str, Line], *, x: str, y: str, alt: str, marks: Iterable[Mark] = (), form: str = ".4~g"
) -> Spec:
    """Lines over a common x axis that zooms, with a tooltip at each point. A None is a gap."""
    rows = [{"series": name, "x": a, "y": b} for name, line in series.items() for a, b in thinned(line)]
    names, dots = list(series), max((len(line) for line in series.values()), default=0) <= DOTS
    color: Spec = {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": names, "range": list(COLORS[: len(names)])},
    }
    color["legend"] = {"orient": "top", "title": None} if len(names) > 1 else None
    tooltip = [field("series", "line", kind="nominal"), field("x", x, form=".4~g"), field("y", y, form=form)]
    drawn: Spec = {
        "data": {"values": rows},
        "params": [{"name": "zoom", "select": {"type": "interval", "encodings": ["x"]}, "bind": "scales"}],
        "mark": {"type": "line", "strokeWidth": 1.5, "point": {"size": 30, "opacity": 1 if dots else 0}},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": x},
            "y": {"field": "y", "type": "quantitative", "title": y, "scale": {"zero": False, "padding": MARGIN / 2}},
            "color": color,
            "tooltip": tooltip,
        },
    }
    rules: Spec = {
        "data": {"values": [{"x": mark.x, "text": mark.text} for mark in marks]},
        "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 2, "color": RED},
        "encoding": {"x": {"field": "x", "type": "quantitative"}, "tooltip": {"field": "text", "type": "nominal"}},
    }
    return framed(alt, layer=[drawn, *([rules] if rules["data"]["values"] else [])])


def estimates(rows: Sequence[Interval], *, x: str, alt: str) -> Spec:
    """A point per row with the interval around it, the first row on top."""
    values = [
        {"name": row.name, "value": row.value, "low": row.low, "high": row.high, "kind": row.kind} for row in rows
    ]
    kinds = list(dict.fromkeys(row.kind for row in rows))
    y = {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 220}}
    color: Spec = {"field": "kind", "type": "nominal", "scale": {"domain": kinds, "range": list(COLORS[: len(kinds)])}}
    color["legend"] = {"orient": "top", "title": None} if len(kinds) > 1 else None
    tooltip = [field("name", "name", kind="nominal"), field("value", x, form=".2f")]
    bar: Spec = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {
            "x": {"field": "low", "type": "quantitative", "title": x, "scale": {"zero": False}},
            "x2": {"field": "high"},
            "y": y,
            "color": color,
        },
    }
    point: Spec = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
        "encoding": {
            "x": {"field": "value", "type": "quantitative", "title": x, "scale": {"zero": False}},
            "y": y,
            "color": color,
            "tooltip": [*tooltip, field("low", "from", form=".2f"), field("high", "to", form=".2f")],
        },
    }
    named = {"data": {"values": values}, "layer": [bar, point]}
    return framed(alt, height=40 + 22 * len({row.name for row in rows}), **named)


def scatter(
    rows: Sequence[Mapping[str, Any]], *, x: str, y: str, alt: str, color: str | None = None, log: bool = False
) -> Spec:
    """A point per row of the fields `x`, `y` and `name`, coloured by the field `color`."""
    numbers = all(isinstance(row["x"], int | float) for row in rows)
    kind = "quantitative" if numbers else "nominal"
    horizontal: Spec = {"field": "x", "type": kind, "title": x}
    if numbers:
        horizontal["scale"] = {"padding": MARGIN} | ({"type": "log"} if log else {"zero": False})
    encoding: Spec = {
        "x": horizontal,
        "y": {"field": "y", "type": "quantitative", "title": y, "scale": {"zero": False, "padding": MARGIN}},
        "tooltip": [field("name", "name", kind="nominal"), field("x", x, kind=kind), field("y", y, form=".4~g")],
    }
    if color:
        kinds = list(dict.fromkeys(str(row[color]) for row in rows))
        scale = {"domain": kinds, "range": list(COLORS[: len(kinds)])}
        encoding["color"] = {
            "field": color,
            "type": "nominal",
            "scale": scale,
            "legend": {"orient": "top", "title": None},
        }
    spec: Spec = {"data": {"values": [dict(row) for row in rows]}, "encoding": encoding}
    spec["mark"] = {"type": "point", "filled": True, "size": 70, "opacity": 0.85, "color": BLUE}
    if numbers:
        spec["params"] = [{"name": "zoom", "select": "interval", "bind": "scales"}]
    return framed(alt, **spec)


def reliability(bins: Sequence[Mapping[str, float]], *, alt: str) -> Spec:
    """Accuracy against confidence in each bin that holds images, both from 0 to 1; the diagonal is perfect."""
    rows = [dict(one) for one in bins if one["images"]]
    axes: Spec = {
        "x": {"field": "confidence", "type": "quantitative", "title": "mean confidence", "scale": {"domain": [0, 1]}},
        "y": {"field": "accuracy", "type": "quantitative", "title": "accuracy", "scale": {"domain": [0, 1]}},
    }
    tooltip = [field(key, key, form=".3f" if key != "images" else ",") for key in ("confidence", "accuracy", "images")]
    diagonal: Spec = {
        "data": {"values": [{"confidence": at, "accuracy": at} for at in (0, 1)]},
        "mark": {"type": "line", "strokeDash": [4, 3], "color": "#8a8f99", "strokeWidth": 1},
        "encoding": axes,
    }
    size = {"field": "images", "type": "quantitative", "scale": {"range": [30, 400]}, "legend": None}
    points: Spec = {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "opacity": 0.9, "color": BLUE},
        "encoding": axes | {"size": size, "tooltip": tooltip},
    }
    return framed(alt, layer=[diagonal, points])


def bars(rows: Sequence[tuple[str, float]], *, x: str, alt: str, form: str = ".2f") -> Spec:
    """A bar per (name, value), in this order."""
    return framed(
        alt,
        height=40 + 22 * len(rows),
        data={"values": [{"name": name, "value": value} for name, value in rows]},
        mark={"type": "bar", "color": BLUE},
        encoding={
            "x": {"field": "value", "type": "quantitative", "title": x},
            "y": {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}},
            "tooltip": [field("name", "name", kind="nominal"), field("value", x, form=form)],
        },
    )


def heatmap(
    cells: Sequence[tuple[str, str, float, int]], *, x: str, y: str, names: Sequence[str], count: str, alt: str
) -> Spec:
    """A square per (name across, name down, share from 0 to 1, count) of a matrix, the first name at the top left."""
    axis: Spec = {"type": "nominal", "sort": list(names), "axis": {"labelLimit": 120}}
    tooltip = [field("y", y, kind="nominal"), field("x", x, kind="nominal"), field("share", "share", form=".1%")]
    return framed(
        alt,
        height=80 + 20 * len(names),
        data={"values": [dict(zip(("x", "y", "share", "count"), cell, strict=True)) for cell in cells]},
        mark="rect",
        encoding={
            "x": {"field": "x", "title": x, **axis},
            "y": {"field": "y", "title": y, **axis},
            "color": {
                "field": "share",
                "type": "quantitative",
                "scale": {"domain": [0, 1], "scheme": "blues"},
                "legend": {"orient": "top", "title": None, "format": ".0%", "gradientLength": 260},
            },
            "tooltip": [*tooltip, field("count", count, form=",")],
        },
    )


def parallel(
    trials: Sequence[tuple[str, Mapping[str, Any], float]], axes: Sequence[str], *, target: str, alt: str
) -> Spec:
    """Parallel coordinates: a line per (name, settings, value of the target) over an axis per setting and the target.

    Numbers run from the least to the largest; texts stand in the order of their first appearance.
    """
    columns = {key: [settings[key] for _, settings, _ in trials] for key in axes} | {
        target: [value for *_, value in trials]
    }
    places = {key: _places(values) for key, values in columns.items()}
    rows = [
        {"trial": name, "axis": key, "at": places[key][row], "value": str(columns[key][row]), "target": value}
        for row, (name, _, value) in enumerate(trials)
        for key in columns
    ]
    tooltip = [
        field("trial", "trial", kind="nominal"),
        field("axis", "setting", kind="nominal"),
        field("value", "value", kind="nominal"),
    ]
    return framed(
        alt,
        data={"values": rows},
        mark={"type": "line", "strokeWidth": 1.5, "opacity": 0.8, "point": {"size": 40}},
        encoding={
            "x": {"field": "axis", "type": "nominal", "sort": None, "title": None, "axis": {"labelAngle": -20}},
            "y": {
                "field": "at",
                "type": "quantitative",
                "title": "least to largest",
                "axis": {"labels": False, "ticks": False},
            },
            "detail": {"field": "trial", "type": "nominal"},
            "color": {"field": "target", "type": "quantitative", "title": target, "scale": {"scheme": "viridis"}},
            "tooltip": tooltip,
        },
    )


def _places(values: Sequence[Any]) -> list[float]:
    """Each value's place from 0 to 1."""
    if not all(isinstance(value, int | float) for value in values):
        order = list(dict.fromkeys(map(str, values)))
        values = [order.index(str(value)) for value in values]
    low, high = min(values), max(values)
    if low > 0 and high / low > 20:
        values, low, high = [math.log(value) for value in values], math.log(low), math.log(high)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def field(name: str, title: str, *, form: str = "", kind: str = "quantitative") -> Spec:
    """A line of a tooltip."""
    return {"field": name, "type": kind, "title": title, **({"format": form} if form else {})}


def framed(alt: str, **spec: Any) -> Spec:
    """A chart as wide as the page allows."""
    fit = {"type": "fit-x", "contains": "padding"}
    return {"description": alt, "width": "container", "height": HEIGHT, "autosize": fit, **spec}


def thinned(line: Line) -> list[tuple[float, float | None]]:
    """At most MOST points: of a longer line, the mean of each few neighbours that are known."""
    step = -(-len(line) // MOST)
    if step <= 1:
        return list(line)
    groups = [line[start : start + step] for start in range(0, len(line), step)]
    return [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]  # type: ignore[misc]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
