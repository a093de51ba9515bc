"""evaluate.py logger=wandb: what the real wandb wrote offline, beside the evaluation's own files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from miniature import figures, rows
from PIL import Image
from programs import ROOT, checkpoint, make_digits, metrics, run
from wandb_file import summary, wandb_records
from wandb_process import environment
from wandb_server import held, wandb_server

from cotnet.commands.eval_logger import scalars
from cotnet.reporting.wandb_file import read_start, run_files

pytestmark = pytest.mark.slow


@pytest.fixture
def staging(tmp_path, monkeypatch):
    """Where wandb keeps images of tables until they are sent."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    return tmp_path / "staging"


def mirror(folder: Path) -> Path:
    """The .wandb file of the evaluation's only W&B run."""
    (file,) = run_files(folder)
    return file


def staged(file: Path, table: str) -> dict[str, Path]:
    """The staged files of a logged table: the table, and its images by the path that the table names them by."""
    artifacts = (record.artifact for record in wandb_records(file) if record.HasField("artifact"))
    (manifest,) = (artifact.manifest for artifact in artifacts if artifact.name.endswith(f"-{table}"))
    return {entry.path: Path(entry.local_path) for entry in manifest.contents}


def table(file: Path, name: str) -> list[dict[str, object]]:
    """The rows of a logged table by column."""
    content = json.loads(staged(file, name)[f"{name}.table.json"].read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_figures_tables_and_images(uncut, digits, staging, tmp_path):
    """Two sizes, evaluated without a logger, then shown: nothing is evaluated again."""
    data = make_digits(tmp_path / "data", train=9, val=5)
    given = [
        f"checkpoint={uncut(1)}",
        f"data.root={data}",
        "data.eval_size=[32,48]",
        "output_dir=out",
    ]
    run("evaluate.py", *given, cwd=tmp_path)
    before = {size: (tmp_path / "out" / size / "metrics.json").read_bytes() for size in ("32", "48")}
    broken = rows(tmp_path / "out" / "32" / "predictions.csv")[7]["file"]
    (data / "val" / broken).write_bytes(b"no image")
    done = run("evaluate.py", *given, "logger=wandb", "logger.tags=[t]", cwd=tmp_path)
    assert done.stdout.count("W&B: offline") == 2
    run_id, ids = checkpoint(uncut(1))["progress"]["run_id"], set()
    for size in ("32", "48"):
        folder = tmp_path / "out" / size
        assert (folder / "metrics.json").read_bytes() == before[size]
        file, found = mirror(folder), figures(folder)
        start = read_start(file)
        ids.add(start.run.run_id)
        assert (start.run.job_type, start.run.run_group, start.run.project) == ("eval", "out", "cotnet")
        assert (start.run.display_name, list(start.run.tags), start.exit_code) == (f"out/{size}", ["t"], 0)
        assert run_id in start.run.notes
        assert (start.config["training_run"], start.config["size"]) == (run_id, int(size))
        assert start.config["figures_depend_on"]["settings"] == found["settings"]
        shown = summary(file)
        same = ("top1", "top5", "loss", "ece", "adaptive_ece", "classwise_ece", "brier", "images", "latency_ms_p50")
        assert {name: shown[name] for name in same} == {name: found[name] for name in same}
        assert [shown["top1_low"], shown["top1_high"]] == found["top1_interval"]
        assert scalars(found).items() <= shown.items()
        assert_tables(folder, file, found, root=data / "val", broken=broken)
    assert len(ids) == 2 and run_id not in ids
    shutil.rmtree(tmp_path / "out" / "48" / "wandb")
    (tmp_path / "out" / "48" / "predictions.csv").unlink()
    again = run("evaluate.py", *given, "logger=wandb", cwd=tmp_path)
    (line,) = [line for line in again.stdout.splitlines() if "W&B" in line]
    assert line.startswith("W&B: out/48 is not shown: no predictions at out/48/predictions.csv")


def assert_tables(folder, file, found, *, root, broken):
    """Every table of W&B against the evaluation's files, and images against the set's."""
    predictions = table(file, "predictions")
    assert list(predictions[0]) == ["file", "image", "label", "top1", "p1", "correct"]
    wanted = {row["file"]: row for row in rows(folder / "predictions.csv")}
    assert len(predictions) == len(wanted) == 50
    words = {row["class"]: row["words"] for row in rows(folder / "per_class.csv")}
    names = [words[name] for name in sorted(words)]
    for row in predictions:
        own = wanted[row["file"]]
        assert (row["label"], row["top1"]) == (names[int(own["label"])], names[int(own["top1"])])
        assert (row["p1"], int(row["correct"])) == (float(own["p1"]), int(own["correct"]))
        assert (row["image"] is None) == (row["file"] == broken)
    wrong = [row["p1"] for row in predictions if not row["correct"]]
    right = [row["p1"] for row in predictions if row["correct"]]
    assert [row["correct"] for row in predictions] == [False] * len(wrong) + [True] * len(right)
    assert wrong == sorted(wrong, reverse=True) and right == sorted(right)
    images = staged(file, "predictions")
    for row in [row for row in predictions if row["file"] != broken][:10]:
        with Image.open(images[row["image"]["path"]]) as small, Image.open(root / row["file"]) as large:
            assert np.abs(np.asarray(small, float) - np.asarray(large.convert("RGB"), float)).mean() < 10

    for name in ("per_class", "confusions"):
        for ours, theirs in zip(table(file, name), rows(folder / f"{name}.csv"), strict=True):
            assert {key: "" if value is None else str(value) for key, value in ours.items()} == theirs
    matrix = {(row["Actual"], row["Predicted"]): row["nPredictions"] for row in table(file, "confusion_matrix_table")}
    assert len(matrix) == 100 and sum(matrix.values()) == 50
    assert sum(count for (actual, predicted), count in matrix.items() if actual == predicted) == len(right)
    confused = rows(folder / "confusions.csv")[0]
    assert matrix[confused["label_words"], confused["predicted_words"]] == int(confused["images"])
    bins = [(one["confidence"], one["accuracy"], one["images"]) for one in found["reliability"] if one["images"]]
    line = [row for row in table(file, "reliability_table") if row["line"] == "measured"]
    assert [(row["confidence"], row["accuracy"], row["images"]) for row in line] == bins


@pytest.mark.long
def test_wandb_changes_neither_figures_nor_exit_code(uncut, tmp_path, monkeypatch):
    """wandb cannot stage the images: one line from two ranks. Another logger, or no table to show: refused before
    anything is done."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "file" / "staging"))
    given = [f"checkpoint={uncut(1)}", "logger=wandb", "logger.group=mine"]
    ranks = ("launch.ranks=2", "loader=torchvision", "loader.threads=0")
    done = run("evaluate.py", *given, *ranks, "output_dir=out", cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("W&B stopped")]
    assert ", the evaluation did not; to upload what it kept: wandb sync " in line
    last = [row for row in metrics(uncut(1)) if "val/top1" in row]
    assert figures(tmp_path / "out")["top1"] in [row["val/top1_ema"] for row in last]
    assert read_start(mirror(tmp_path / "out")).run.run_group == "mine"

    refused = run("evaluate.py", *given, "predictions=[]", "output_dir=no", cwd=tmp_path, code=2)
    assert refused.stderr == "error: predictions: logger=wandb shows the images of predictions.csv; add csv\n"
    refused = run("evaluate.py", given[0], "logger=tensorboard", "output_dir=no", cwd=tmp_path, code=2)
    assert "evaluate.py shows its results on W&B or nowhere; set logger=wandb or logger=none" in refused.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.long
def test_online_the_run_links_to_its_training_run(uncut, tmp_path):
    """A server of the loopback takes the figures, the tables and their images."""
    with wandb_server(tmp_path) as (address, _):
        given = environment(tmp_path, WANDB_BASE_URL=address, WANDB_API_KEY="k" * 40, OMP_NUM_THREADS="1")
        command = [ROOT / "evaluate.py", f"checkpoint={uncut(1)}", "logger=wandb", "output_dir=out"]
        streams = {"capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *command], check=False, cwd=tmp_path, env=given, **streams)
        assert (done.returncode, done.stderr) == (0, "")
        (run_id,), (run_found,) = zip(*held(address).items(), strict=True)
        artifacts, uploads = held(address, "artifacts"), held(address, "uploads")
    assert f"W&B: online at {address}/me/cotnet/runs/{run_id}" in done.stdout
    assert (run_found["ended"], run_found["named"]["displayName"]) == (0, "out")
    config = {key: item["value"] for key, item in json.loads(run_found["config"]).items()}
    training_id = checkpoint(uncut(1))["progress"]["run_id"]
    assert config["training_run"] == training_id
    assert config["training_url"] == f"{address}/me/cotnet/runs/{training_id}"
    assert scalars(figures(tmp_path / "out")).items() <= run_found["summary"].items()
    names = {artifact["asked"]["artifactCollectionName"].split("-")[-1] for artifact in artifacts.values()}
    assert names == {"predictions", "per_class", "confusions", "confusion_matrix_table", "reliability_table"}
    assert all(artifact["committed"] for artifact in artifacts.values())
    assert sum(path.endswith(".jpg") for path in uploads) > 40


def test_single_values():
    nested = {"top1": 50.0, "top1_interval": [40.0, 60.0], "missing": [{"file": "a"}], "brier": None}
    nested |= {"held_out": {"images": 7, "ece_after": 0.5}, "reliability": [], "settings": {"fuse": False}}
    flat = {"top1": 50.0, "top1_low": 40.0, "top1_high": 60.0, "missing": 1}
    assert scalars(nested) == flat | {"held_out_images": 7, "held_out_ece_after": 0.5}


def test_images_without_labels_are_shown(uncut, digits, staging, tmp_path):
    run(
        "evaluate.py",
        f"checkpoint={uncut(1)}",
        f"images={digits / 'val'}",
        "logger=wandb",
        "output_dir=out",
        cwd=tmp_path,
    )
    predictions = table(mirror(tmp_path / "out"), "predictions")
    shares = [row["p1"] for row in predictions]
    assert len(predictions) == 50 and shares == sorted(shares)
    assert {(row["label"], row["correct"]) for row in predictions} == {(None, None)}
    assert len({row["image"]["path"] for row in predictions}) > 40
    assert summary(mirror(tmp_path / "out"))["images"] == 50
