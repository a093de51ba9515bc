"""Rows of metrics.jsonl that W&B lost or has twice, after kills, rollbacks and a dead mirror."""

import json
import math
import signal
from pathlib import Path

import pytest
from wandb_file import history, summary
from wandb_process import REPORTS, environment, files, run, start

from cotnet import records
from cotnet.reporting.wandb_file import LocalRecord

pytestmark = pytest.mark.slow


def local(folder: Path) -> list[dict]:
    """The rows of all starts."""
    return [row for file in files(folder) for row in history(file)]


def by_content(rows: list[dict]) -> list[list]:
    """In an order of their own, with null for NaN, as metrics.jsonl has it."""
    return sorted([sorted((name, repr(value and float(value))) for name, value in row.items()) for row in plain(rows)])


def plain(rows: list[dict]) -> list[dict]:
    return [
        {name: None if value is None or math.isnan(value) else value for name, value in row.items()} for row in rows
    ]


def cut_at(folder: Path, tmp_path: Path, step: int, *, written: bool) -> None:
    """A process that logs the steps 1 to `step` and dies of SIGKILL, after wandb has written them or before."""
    code = """
logger.start(folder, {}, "1a2b3c4d", "run")
if sys.argv[4] == "False":
    os.kill(core(), signal.SIGSTOP)
for step in range(1, int(sys.argv[3]) + 1):
    write({"step": step, "epoch": step / 10, "train/loss": 2.5, "train/grad_norm": float("nan"), "train/lr": 1.0})
time.sleep(1.5 if sys.argv[4] == "True" else 0.2)
os.kill(core(), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start(code, folder, environment(tmp_path), "offline", str(step), str(written))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGKILL, "")


END = """
made, state = reports(int(sys.argv[3]), sys.argv[4])
with made:
    for step in range(int(sys.argv[3]) + 1, int(sys.argv[5]) + 1):
        made.train(row(step, loss=1.5))
    made.status("finished", state)
"""


MORE = """
kept = records.read(folder / "metrics.jsonl")
run_id = logger.start(folder, {"environment": {"step": kept[-1]["step"]}}, sys.argv[3] or None, "run", kept=kept)
write({"step": kept[-1]["step"] + 1, "epoch": 0.5})
print(logger.finish(0))
"""


@pytest.mark.long
@pytest.mark.slow
def test_rows_that_a_kill_costs_are_logged_again(tmp_path):
    """Killed after three rows that a checkpoint counts on, before wandb has written them."""
    folder = tmp_path / "run"
    cut_at(folder, tmp_path, 3, written=False)
    assert local(folder) == []
    out = run(REPORTS + END, folder, environment(tmp_path), "offline", "3", "1a2b3c4d", "5")
    rows = records.read(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert by_content(local(folder)) == by_content(rows)
    assert "wandb" not in json.loads((folder / "summary.json").read_text())
    assert out.splitlines()[1:] == ["W&B: logged 3 rows of metrics.jsonl again that its record lacked"]


@pytest.mark.long
def test_rows_that_may_be_on_the_server_are_not_logged_again(tmp_path):
    """The files are gone, as after `wandb sync --clean`; a run that is new to W&B gets all rows."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (1, 2):
        records.append(folder / "metrics.jsonl", {"step": step, "epoch": step / 10, "train/loss": 1 / step})
    assert run(MORE, folder, environment(tmp_path), "offline", "1a2b3c4d").splitlines()[1:] == ["{}"]
    assert local(folder) == [{"step": 3, "epoch": 0.5}]
    out = run(MORE, folder, environment(tmp_path), "offline", "").splitlines()
    assert out[1:] == ["W&B: logged 3 rows of metrics.jsonl again that its record lacked", "{}"]
    assert by_content(local(folder)[1:]) == by_content(records.read(folder / "metrics.jsonl"))


@pytest.mark.long
@pytest.mark.slow
def test_rows_that_were_rolled_back_are_counted(tmp_path):
    """Killed at step 5, continued at step 2, and at step 4 back to step 3 within the process."""
    folder = tmp_path / "run"
    cut_at(folder, tmp_path, 5, written=True)
    code = """
made, state = reports(2, "1a2b3c4d")
with made:
    for step in (3, 4):
        made.train(row(step, loss=1.5))
    state.step = 3
    made.rolled_back(state, "back to step 3")
    for step in (4, 5):
        made.train(row(step, loss=1.25))
    made.status("finished", state)
"""
    out = run(REPORTS + code, folder, environment(tmp_path), "offline")
    assert json.loads((folder / "summary.json").read_text())["wandb"] == {"missing": 0, "extra": 4}
    assert summary(files(folder)[-1])["extra_rows"] == 4
    assert out.splitlines()[-1] == (
        "warning: W&B's record lacks 0 rows of metrics.jsonl and has 4 that were rolled back or logged twice; "
        f"to rebuild it: python -m cotnet.sync --rebuild {folder}"
    )


@pytest.mark.long
@pytest.mark.slow
def test_rows_that_a_dead_mirror_lacks_are_counted_and_logged_at_the_next_start(tmp_path):
    folder = tmp_path / "run"
    died = """
made, state = reports(0)
with made:
    made.train(row(1))
    time.sleep(1.5)
    os.kill(core(), signal.SIGKILL)
    time.sleep(0.3)
    for step in (2, 3):
        made.train(row(step))
    made.status("interrupted", state)
print(state.run_id)
"""
    run_id = run(REPORTS + died, folder, environment(tmp_path), "offline").split()[-1]
    assert json.loads((folder / "summary.json").read_text())["wandb"] == {"missing": 2, "extra": 0}
    assert run(MORE, folder, environment(tmp_path), "offline", run_id).splitlines()[-1] == "{}"
    assert by_content(local(folder)) == by_content(records.read(folder / "metrics.jsonl"))


@pytest.mark.long
@pytest.mark.slow
def test_the_summary_holds_the_best_evaluation(tmp_path):
    folder = tmp_path / "run"
    code = """
made, state = reports(0)
with made:
    for step, top1 in ((10, 60.0), (20, 50.0)):
        if top1 == 60.0:
            state.best = {"best_top1": 60.0, "best_top5": 90.0, "best_epoch": 1.0, "best_weights": "ema"}
        made.validation(validated(step, top1), state)
"""
    run(REPORTS + code, folder, environment(tmp_path), "offline")
    best = {"best_top1": 60.0, "best_top5": 90.0, "best_epoch": 1.0, "best_weights": "ema"}
    mirrored = summary(files(folder)[0])
    assert {name: value for name, value in mirrored.items() if name.startswith("best_")} == best
    assert mirrored["val/top1"] == 50.0
    assert (mirrored["best/val/top1"], mirrored["best/val/loss"]) == (60.0, 2.0)
    assert best.items() <= json.loads((folder / "summary.json").read_text()).items()


def test_records_are_compared_as_multisets_of_rows():
    nan, rows = float("nan"), [{"step": 1, "a": 1.0, "b": None}, {"step": 2, "a": 2.5}, {"step": 2, "val/top1": 50.0}]
    record = LocalRecord()
    for row in ({"b": nan, "step": 1.0, "a": 1}, {"step": 2, "a": 2.5}, {"step": 2, "a": 2.5}, {"step": 3, "a": 0.0}):
        record.add(row)
    assert record.compare(rows, all_rows=True) == ([rows[2]], 2)
    assert record.compare(rows) == ([], 2)  # without files the rest may be on the server
    assert record.compare([*rows, rows[1]], all_rows=True) == ([rows[2]], 1)
