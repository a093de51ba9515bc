"""The papers' tables: the page is what the command writes, each row's command composes and builds its model."""

import json
import re
from pathlib import Path

import pytest
import torch

from cotnet import parts
from cotnet.benchmarks import tables
from cotnet.benchmarks.paper_tables import build_row, configuration, counts, read_tables
from cotnet.models.table import count_parameters
from cotnet.pages.read import read_json

DOCS = Path(__file__).parents[2] / "docs"
SOURCES, TABLES = read_tables()
MEASURED = read_json(DOCS / "tables.json")
PARAMETERS = {(record["table"], record["row"]): record["parameters"] for record in MEASURED["records"]}
RUNNING = [[(table, row) for row in table.rows if row.run is not None] for table in TABLES]
QUICK = ("CoTNet: what leaves the block", "Static context")

# Two rows of one model, one of another, a row that cannot run, and a detector.
SMALL = """
sources: {a: A paper, b: A repository}
tables:
  - title: First
    about: Small nets.
    source: a
    recipe: "experiment=digits data.image_size=32 data.eval_size=32"
    rows:
      - {label: CoT, read: {top1: 90.0, parameters: 1}, recalled: {top5: 99.5}, run: "", ours: 98.9 on digits}
      - {label: plain, source: b, read: {top1: 89}, run: backbone=resnet_small}
      - {label: CoT again, run: train.epochs=3}
      - {label: other, recalled: {top1: 88.1}, cannot: nobody has it}
  - title: Second
    about: A detector.
    rows:
      - {label: shapes, run: "experiment=shapes data.eval_short_side=64"}
  - title: Third
    about: Nets that nobody has.
    rows:
      - {label: DETR, cannot: it is not part of this project}
"""


def ids(pair):
    return f"{pair[0].title}, {pair[1].label}"


def marked():
    """One row in the quick tests, the last of each table in the slow ones, the others in the long ones."""
    for pairs in RUNNING:
        for pair in pairs:
            marks = [pytest.mark.slow, pytest.mark.long][: 1 if pair == pairs[-1] else 2]
            quick = (pair[0].title, pair[1].label) == QUICK
            yield pytest.param(pair, id=ids(pair), marks=[] if quick else marks)


def cells(page, label):
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_page_is_what_the_command_writes():
    written = (DOCS / "tables.md").read_text()
    command = "python -m cotnet.benchmarks.tables --write docs/tables.md"
    assert tables.page(SOURCES, TABLES, MEASURED) == written, f"{command} writes another page: commit it"


@pytest.mark.parametrize("pair", list(marked()))
def test_command_composes_and_builds_the_row(pair):
    config = configuration(*pair)
    if not parts.is_dense(config):
        parts.settings_of(config)  # of dense ones in build_row
    model = build_row(config)
    assert count_parameters(model.whole) == PARAMETERS[pair[0].title, pair[1].label]
    assert all(parameter.is_meta for parameter in model.whole.parameters())


def test_accuracies_of_ours_are_in_their_page():
    text = (DOCS / "fashion_mnist.md").read_text()
    found = [row.ours for table in TABLES for row in table.rows if row.ours]
    assert found
    for ours in found:
        figure, _, where = ours.partition(", ")
        assert where == "Fashion-MNIST"
        assert re.search(rf"\| {figure} \|", text), ours


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Data, JSON file and page of a run."""
    folder = tmp_path_factory.mktemp("tables")
    data, file, page = folder / "t.yaml", folder / "t.json", folder / "t.md"
    data.write_text(SMALL)
    given = ["--data", str(data), "--json", str(file)]
    tables.main([*given, "--measure", "--rounds", "1", "--note", "Alone.", "--write", str(page)])
    return data, file, page


@pytest.mark.slow
def test_counts_and_speed_of_each_row(measured):
    rows = {record["row"]: record for record in read_json(measured[1])["records"]}
    assert list(rows) == ["CoT", "plain", "CoT again", "shapes"]
    for name, backbone in (("CoT", "cotnet_small"), ("plain", "resnet_small")):
        node = {"_target_": f"cotnet.models.{backbone}", "num_classes": 10}
        assert rows[name]["parameters"] == count_parameters(parts.on_meta(node))
    assert rows["CoT"]["images_per_second"] == rows["CoT again"]["images_per_second"]  # timed once
    assert rows["CoT"]["images_per_second"] == pytest.approx(1000 / rows["CoT"]["milliseconds"])
    assert rows["shapes"]["size"] == 64


@pytest.mark.slow
def test_of_a_detector_backbone_and_pyramid_are_counted(measured):
    (record,) = [record for record in read_json(measured[1])["records"] if record["row"] == "shapes"]
    table = read_tables(measured[0])[1][1]
    model = build_row(configuration(table, table.rows[0]), "cpu")
    assert record["parameters"] == count_parameters(model.whole) > count_parameters(model.timed)
    found = counts(configuration(table, table.rows[0]))
    assert found["multiply_adds"] == record["multiply_adds"]
    finest = next(iter(model.timed(torch.zeros(1, 3, 64, 64)).values()))
    assert finest.shape == (1, 32, 32, 32)


def test_page_of_rows(measured):
    page = measured[2].read_text()
    rows = {record["row"]: record for record in read_json(measured[1])["records"]}
    cot, plain = (rows[name]["images_per_second"] for name in ("CoT", "plain"))
    ours = f"{rows['CoT']['parameters'] / 1e6:.2f}"
    assert cells(page, "CoT")[:5] == ["CoT", "1.0", "90.0", "*99.5*", "a, *recalled*"]
    assert cells(page, "CoT")[5:8] == ["`experiment=digits data.image_size=32 data.eval_size=32`", "32", ours]
    assert cells(page, "CoT")[9:] == [f"{cot:.3g} (1.00)", "98.9 on digits"]
    assert cells(page, "plain")[1:5] == ["", "89.0", "", "b"]
    assert cells(page, "plain")[9:] == [f"{plain:.3g} ({plain / cot:.2f})", "–"]
    assert cells(page, "other")[1:6] == ["", "*88.1*", "", "*recalled*", "cannot run here: nobody has it"]
    assert "Alone." in page
    assert "- **b**: A repository" in page


@pytest.mark.slow
def test_other_tables_are_kept(measured, tmp_path, capsys):
    data, file = measured[0], tmp_path / "t.json"
    file.write_text(measured[1].read_text())
    tables.main(["--data", str(data), "--json", str(file), "--measure", "--only", "Second", "--rounds", "1"])
    before, after = ({r["row"]: r for r in read_json(path)["records"]} for path in (measured[1], file))
    assert list(before) == list(after)
    assert after["CoT"] == before["CoT"]
    assert after["shapes"]["milliseconds"] != before["shapes"]["milliseconds"]
    assert "shapes" in capsys.readouterr().out


def test_figures_of_two_machines_are_not_mixed(measured, tmp_path, capsys):
    file = tmp_path / "t.json"
    content = read_json(measured[1])
    content["machine"]["processor"] = "another one"
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as end:
        tables.main(["--data", str(measured[0]), "--json", str(file), "--measure", "--only", "First"])
    assert end.value.code == 2
    assert "is of another machine; give another --json" in capsys.readouterr().err
    assert read_json(file) == content


ROW = "{label: CoT again, run: train.epochs=3}"


@pytest.mark.parametrize(
    ("instead", "line"),
    [
        ("{label: CoT again, run: backbone=cotnet5}", "First, CoT again: backbone=cotnet5 is unknown; did you mean "),
        ("{label: CoT again, run: backbone.fusoin=static}", "First, CoT again: backbone.fusoin is not a setting; "),
        ("{label: CoT again, run: train.epochs=4, read: {top1: }}", "row 3.read={top1:null} must be names with "),
        ("{label: CoT again, run: a, read: {top_1: 80}}", "First, CoT again: top_1 is no figure; did you mean top1"),
        ("{label: CoT again, run: a, read: {top1: 80}, source: c}", "CoT again: source c is unknown; valid: a, b"),
        ("{label: CoT again, run: a, read: {top1: 80}, recalled: {top1: 81}}", "top1 is both read and recalled"),
        ("{label: CoT again}", "First, CoT again: give either run or cannot"),
        ("{label: plain, run: a}", "First: plain stands there twice"),
        ("{lable: CoT again, run: a}", "row 3.lable is not a setting; did you mean "),
        ("{label: CoT again, run: train.epochs=4}", "First, CoT again: its figures are of another command"),
        ("{label: CoT once more, run: train.epochs=3}", "First, CoT once more: its figures are missing"),
    ],
)
def test_a_wrong_row_is_one_line(instead, line, measured, tmp_path, capsys):
    data = tmp_path / "t.yaml"
    data.write_text(SMALL.replace(ROW, instead))
    command = ["--data", str(data), "--json", str(measured[1]), "--write", str(tmp_path / "t.md")]
    measure = ["--measure", "--json", str(tmp_path / "t.json")] if "backbone" in instead else []
    with pytest.raises(SystemExit) as end:
        tables.main([*command, *measure])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert line in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "t.md").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--measure", "--only", "Fourth"], "--only Fourth: no table has it in its title"),
        ([], "give --measure, --write FILE or both"),
        (
            ["--write", "/tmp/none.md", "--json", "/none.json"],
            "--json /none.json: no such file; add --measure, which writes it",
        ),
        (["--measure", "--rounds", "-1"], "--rounds must be at least 0"),
        (["--write", "/"], "/ is a folder; give a file"),
        (["--data", "/none.yaml"], "/none.yaml: cannot be read"),
    ],
)
def test_a_wrong_option_is_one_line(given, line, measured, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        tables.main(["--data", str(measured[0]), "--json", str(tmp_path / "t.json"), *given])
    assert end.value.code == 2
    assert line in capsys.readouterr().err
    assert json.loads(measured[1].read_text())["note"] == "Alone."
