"""Runs that meet what days of training meet: numbers that overflow, hanging ranks, several machines, a cluster."""

import json

import pytest
from programs import SMALL, assert_same_run, checkpoint, metrics, run

from cotnet.engine import state as checkpoints

STEPS = 4

pytestmark = pytest.mark.slow


def test_rollback(digits, tmp_path):
    """A rate that overflows at step 3: back to the start without that batch, at a rate that works; cut and continued,
    the run is the same."""
    overrides = [*SMALL, f"data.root={digits}", "optimizer.lr=1e30", "train.on_nonfinite=rollback"]
    overrides += ["train.rollback_lr_factor=1e-31", "checkpoint.keep_every=2", "checkpoint.keep_top=1"]
    done = run("train.py", *overrides, "output_dir=uncut", cwd=tmp_path)
    (incident,) = (tmp_path / "uncut" / "incidents").glob("*/incident.json")
    told = json.loads(incident.read_text())
    (line,) = [line for line in done.stdout.splitlines() if "back to step" in line]
    assert f"the {told['what']} is not finite at step {told['step']}" in line
    assert line.endswith("back to step 0, without that batch, rates times 1e-31")
    assert len(told["files"][0]) == 20 and all((digits / "train" / file).is_file() for file in told["files"][0])
    progress = checkpoint(tmp_path / "uncut")["progress"]
    assert (progress["skipped"], progress["lr_factor"]) == ([[told["epoch"], told["batch"]]], 1e-31)
    assert progress["step"] == 2 * STEPS - 1
    steps = [record["step"] for record in metrics(tmp_path / "uncut")]
    assert steps == sorted(steps)
    rates = [record["train/lr"] for record in metrics(tmp_path / "uncut") if "train/lr" in record]
    assert 0 < max(rates) < 0.1
    kept = tmp_path / "uncut" / "checkpoints"
    best = max(progress["history"], key=lambda row: row[1])[0]
    assert {path.name for path in kept.iterdir()} == {"last.pt", "best.pt", "epoch_0002.pt", f"epoch_{best:04.0f}.pt"}
    assert checkpoints.load(kept / "epoch_0002.pt")["progress"]["step"] == progress["step"]

    run("train.py", *overrides, f"train.max_steps={STEPS - 1}", "output_dir=cut", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", cwd=tmp_path)
    assert_same_run(tmp_path / "uncut", tmp_path / "cut")


def test_rollbacks_end(digits, tmp_path):
    """A rate that no factor mends: after `max_rollbacks` one line, the last good checkpoint stands."""
    overrides = [*SMALL, f"data.root={digits}", "optimizer.lr=1e30", "train.on_nonfinite=rollback"]
    overrides += ["train.rollback_lr_factor=1", "train.max_rollbacks=1", "output_dir=run"]
    done = run("train.py", *overrides, cwd=tmp_path, code=1)
    (line,) = done.stderr.strip().splitlines()
    assert "after 1 rollbacks" in line and "run/checkpoints/last.pt holds the last good state" in line
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert checkpoint(tmp_path / "run")["progress"]["step"] == 0
