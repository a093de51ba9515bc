"""Charts are data: their values are those they were made of."""

import math

import pytest

from cotnet.pages import charts
from cotnet.pages.charts import MOST, Interval, Mark


def values(layer):
    return layer["data"]["values"]


def test_lines_hold_every_point_and_mark():
    series = {"train": [(0.5, 2.0), (1.0, None), (1.5, 1.25)], "val": [(1.0, 3.0)]}
    spec = charts.lines(series, x="epoch", y="loss", alt="words", marks=[Mark(1.2, "continued")])
    drawn, rules = spec["layer"]
    assert [(row["series"], row["x"], row["y"]) for row in values(drawn)] == [
        ("train", 0.5, 2.0),
        ("train", 1.0, None),
        ("train", 1.5, 1.25),
        ("val", 1.0, 3.0),
    ]
    assert values(rules) == [{"x": 1.2, "text": "continued"}]
    assert spec["description"] == "words"
    assert drawn["encoding"]["color"]["scale"]["domain"] == ["train", "val"]


@pytest.mark.parametrize("count", [MOST, MOST + 1, 5 * MOST + 3])
def test_long_lines_are_means_of_neighbours(count):
    line = [(float(at), None if at % 7 == 0 else float(at)) for at in range(count)]
    thin = charts.thinned(line)
    assert len(thin) <= MOST
    step = math.ceil(count / MOST)
    for number, (x, y) in enumerate(thin):
        group = line[number * step : (number + 1) * step]
        known = [value for _, value in group if value is not None]
        assert x == pytest.approx(sum(at for at, _ in group) / len(group))
        assert y == pytest.approx(sum(known) / len(known)) if known else y is None


def test_estimates_without_an_interval_are_points():
    spec = charts.estimates([Interval("a", 3.0, 2.0, 4.0, "ours"), Interval("b", 5.0)], x="top-1", alt="")
    assert values(spec) == [
        {"name": "a", "value": 3.0, "low": 2.0, "high": 4.0, "kind": "ours"},
        {"name": "b", "value": 5.0, "low": None, "high": None, "kind": ""},
    ]


def test_parallel_coordinates_run_from_least_to_largest():
    trials = [("one", {"lr": 0.1, "net": "b"}, 10.0), ("two", {"lr": 0.001, "net": "a"}, 30.0)]
    trials.append(("three", {"lr": 0.01, "net": "b"}, 20.0))
    spec = charts.parallel(trials, ["lr", "net"], target="top1", alt="")
    at = {(row["trial"], row["axis"]): row["at"] for row in values(spec)}
    assert [at[name, "lr"] for name in ("one", "two", "three")] == pytest.approx([1.0, 0.0, 0.5])  # by the logarithm
    assert [at[name, "net"] for name in ("one", "two", "three")] == [0.0, 1.0, 0.0]  # by their first appearance
    assert [at[name, "top1"] for name in ("one", "two", "three")] == [0.0, 1.0, 0.5]
