"""The pages in a real browser: no error, no request, charts drawn, tables that sort, small and dark screens."""

import csv
import json
import shutil

import numpy as np
import pytest
from browser import chromium, needs_chromium
from programs import SMALL, make_digits, metrics, run
from sweeps.by_hand import begin, finish

from cotnet import report
from cotnet.pages.folders import write_reports
from cotnet.sweeps.space import Trial

pytestmark = [pytest.mark.slow, needs_chromium]
SYMBOLS = "document.querySelectorAll('figure[data-title=\"{title}\"] .mark-symbol.role-mark > path').length"
HOSTILE = "<img src=x onerror=alert(1)>&\"'"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(uncut, evaluated, tmp_path_factory):
    """A page of each kind."""
    base = tmp_path_factory.mktemp("pages")
    for name, folder in (("run", uncut(1)), ("ema", evaluated / "ema"), ("other", evaluated / "other")):
        shutil.copytree(folder, base / name)
    ledger = begin(base / "sweep")
    for number, lr in enumerate((0.1, 0.01, 0.001, 1.0)):
        overrides = (f"optimizer.lr={lr}", f"backbone.width={8 + 8 * (number % 2)}")
        finish(ledger, Trial(name=f"lr-{lr}", overrides=overrides), [10.0 * number])
    for name in ("run", "ema", "sweep"):
        write_reports(base / name)
    with pytest.raises(SystemExit):
        report.main([str(base)])
    return {
        "run": base / "run" / "report.html",
        "evaluation": base / "ema" / "report.html",
        "comparison": base / "ema" / "comparison.html",
        "sweep": base / "sweep" / "report.html",
        "leaderboard": base / "report.html",
    }


KINDS = ("run", "evaluation", "comparison", "sweep", "leaderboard")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_drawn_without_an_error_or_a_request(tab, pages, kind):
    assert pages[kind].stat().st_size < 3_000_000
    for dark in (False, True):
        tab.open(pages[kind], dark=dark)
        assert tab.js("document.body.dataset.kind") == kind
        assert (tab.errors, tab.requests) == ([], [pages[kind].absolute().as_uri()])
        charts = tab.js("document.querySelectorAll('figure.chart').length")
        assert charts == tab.js("document.querySelectorAll('figure.chart svg').length")
        light = tab.pixels().mean(axis=2)
        assert np.median(light) < 60 if dark else np.median(light) > 200
        assert light.std() > 5  # not blank
    tab.open(pages[kind], width=390, height=800)
    assert tab.js("document.documentElement.scrollWidth") <= 390


CONTRAST = """(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => numbers(color).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (numbers(color)[3] !== 0) return color;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const ratio = (node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(paper(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const words = "h1, h2, dt, dd, small, p, a, td, th button, figcaption, code, footer, .status";
  return Math.min(...[...document.querySelectorAll(words)].map(ratio));
})()"""  # WCAG 2: relative luminance


@pytest.mark.parametrize("kind", ["run", "evaluation"])
def test_text_can_be_read_and_reached_by_keyboard(tab, pages, kind):
    for dark in (False, True):
        tab.open(pages[kind], dark=dark)
        assert tab.js(CONTRAST) >= 4.5  # WCAG AA
    names = "[...document.querySelectorAll('img, .missing')].every(one => one.alt || one.ariaLabel)"
    assert tab.js(names)
    assert tab.js("[...document.querySelectorAll('figure.chart')].every(one => one.ariaLabel.length > 20)")
    reached = set()
    for _ in range(60):
        tab.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(tab.js("document.activeElement.tagName"))
    assert {"A", "BUTTON", "INPUT", "DIV"} <= reached  # links, headings that sort, filters, tables that scroll


MARKS = """[...document.querySelectorAll("figure.chart")].map((chart) => {
  const spec = JSON.parse(chart.querySelector("script").textContent);
  const known = (layer) => (layer.data ?? spec.data).values
    .filter((row) => [layer.encoding.x, layer.encoding.y].every((axis) => row[axis.field] != null)).length;
  const wanted = (draws) => (spec.layer ?? [spec]).filter((layer) => draws(layer.mark)).map(known);
  const sum = (counts) => counts.reduce((a, b) => a + b, 0);
  const points = sum(wanted((mark) => mark.type === "point" || mark.point));
  const bars = sum(wanted((mark) => mark.type === "bar"));
  const drawn = (kind) => chart.querySelectorAll(`.mark-${kind}.role-mark > path`).length;
  return [chart.dataset.title, points + bars, drawn("symbol") + drawn("rect")];
})"""


@pytest.mark.parametrize("kind", KINDS)
def test_every_chart_has_as_many_marks_as_data(tab, pages, kind):
    tab.open(pages[kind])
    found = tab.js(MARKS)
    assert [one for one in found if one[1] != one[2]] == []
    assert all(one[1] > 0 for one in found) and (found or kind == "comparison")


def test_charts_have_a_mark_for_each_figure(tab, pages, uncut):
    tab.open(pages["run"])
    rows = metrics(uncut(1), timings=True)
    for title, keys in {"Loss": ("train/loss", "val/loss", "val/loss_ema"), "Learning rate": ("train/lr",)}.items():
        count = sum(key in row for row in rows for key in keys)
        assert tab.js(SYMBOLS.format(title=title)) == count > 1
    labels = tab.js("[...document.querySelectorAll('.mark-symbol.role-mark path')].every(mark => mark.ariaLabel)")
    assert labels
    tab.open(pages["sweep"])
    assert tab.js(SYMBOLS.format(title="val/top1 against optimizer.lr")) == 4


def test_a_chart_zooms_and_tells_its_values(tab, pages):
    tab.open(pages["run"])
    axis = "[...document.querySelectorAll('figure[data-title=\"Loss\"] .role-axis-label text')].map(t => t.textContent)"
    box = "document.querySelector('figure[data-title=\"{title}\"] {part}').getBoundingClientRect().toJSON()"
    before, where = tab.js(axis), tab.js(box.format(title="Loss", part="svg"))
    middle = {"x": where["x"] + where["width"] / 2, "y": where["y"] + where["height"] / 2}
    tab.send("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=-300, **middle)
    tab.js("new Promise(done => setTimeout(done, 300))")
    assert tab.js(axis) != before
    mark = tab.js(box.format(title="Learning rate", part=".mark-symbol path"))
    at = {"x": mark["x"] + mark["width"] / 2, "y": mark["y"] + mark["height"] / 2}
    tab.js(f"window.scrollTo(0, {at['y'] - 300})")
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=at["x"], y=at["y"] - tab.js("window.scrollY"))
    tab.js("new Promise(done => setTimeout(done, 300))")
    assert "learning rate" in tab.js("document.getElementById('vg-tooltip-element').textContent")


def test_tables_sort_and_filter(tab, pages, evaluated):
    tab.open(pages["evaluation"])
    box = "[...document.querySelectorAll('.tablebox')].find(b => b.querySelector('h3').textContent === 'Each class')"
    column = "[...{box}.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[{at}].textContent)"
    with (evaluated / "ema" / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    press = "{box}.querySelectorAll('th button')[{at}].click()"
    tab.js(press.format(box=box, at=4))  # top-1
    shown = [float(text) for text in tab.js(column.format(box=box, at=4))]
    assert shown == sorted(shown) and len(shown) == len(rows) == 10
    tab.js(press.format(box=box, at=4))
    assert [float(text) for text in tab.js(column.format(box=box, at=4))] == shown[::-1]
    assert tab.js(f"{box}.querySelectorAll('th')[4].ariaSort") == "descending"
    tab.js(f"(() => {{const i = {box}.querySelector('input'); i.value = '7'; i.dispatchEvent(new Event('input'))}})()")
    kept = tab.js(column.format(box=box, at=0))
    assert "7" in kept and len(kept) < 10
    assert tab.js(f"{box}.querySelector('.count').textContent") == f"{len(kept)} rows"


def test_markup_in_names_is_text(tab, tmp_path):
    """A class and a file whose names are markup: shown, not run."""
    root = make_digits(tmp_path / "set", train=2, val=2)
    for split in ("train", "val"):
        (root / split / "0").rename(root / split / HOSTILE)
    for file in sorted((root / "val" / HOSTILE).iterdir())[:1]:
        file.rename(file.with_name(f"{HOSTILE}.png"))
    given = [*SMALL, "data.root=set", "train.max_steps=1", "output_dir=run"]
    run("train.py", *given, cwd=tmp_path)
    run("evaluate.py", "checkpoint=run", "output_dir=evaluation", cwd=tmp_path)
    tab.open(tmp_path / "evaluation" / "report.html")
    assert (tab.errors, len(tab.requests)) == ([], 1)
    assert HOSTILE in tab.js("document.body.textContent")
    assert tab.js("document.querySelectorAll('img[src=x]').length") == 0
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["images"] == 20
