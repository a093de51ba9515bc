"""Cuts that once lost or changed a run: on more than two ranks, before its first log line, in start-up, at its end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from programs import SMALL, assert_same_run, checkpoint, metrics, run, start

from cotnet.verify_resume import differences, members

pytestmark = pytest.mark.slow
LONG = pytest.mark.long


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def kill_group(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for(lambda: not members(process.pid), seconds=10)


@pytest.mark.parametrize(
    ("ranks", "batch"), [pytest.param(1, 20, marks=LONG), (3, 21), pytest.param(4, 20, marks=LONG)]
)
def test_killed_before_the_first_log_line(ranks, batch, digits, tmp_path):
    """DDP rebuilds its buckets after a process's first backward pass: three and four ranks add up in another order."""
    given = [*SMALL, f"data.root={digits}", f"launch.ranks={ranks}", f"train.batch_size={batch}", "train.log_every=50"]
    given += ["train.max_steps=6", "checkpoint.every_steps=3", "loader=torchvision", "loader.threads=0"]
    run("train.py", *given, "output_dir=uncut", cwd=tmp_path)
    process = start("train.py", *given, "output_dir=cut", cwd=tmp_path)
    last, log = tmp_path / "cut" / "checkpoints" / "last.pt", tmp_path / "cut" / "metrics.jsonl"
    wait_for(last.exists)
    kill_group(process)
    assert checkpoint(tmp_path / "cut")["progress"]["step"] == 3
    if not log.read_text():
        log.unlink()  # as the version before left it
    done = run("train.py", *given, "output_dir=cut", cwd=tmp_path)
    assert "continuing cut at epoch 0, step 3" in done.stdout
    assert_same_run(tmp_path / "uncut", tmp_path / "cut")


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=LONG)])
def test_a_cut_in_the_last_evaluation_under_max_minutes_trains_no_further(ranks, digits, tmp_path):
    given = [*SMALL, f"data.root={digits}", "train.max_minutes=0.001", "train.log_every=1", "output_dir=run"]
    given += ["data.eval_size=144", "data.eval_batch_size=1"]  # an evaluation of seconds
    process = start("train.py", *given, f"launch.ranks={ranks}", cwd=tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text())
    time.sleep(0.2)
    process.terminate()
    out, err = process.communicate(timeout=100)
    assert process.returncode == 75, out + err
    before = metrics(tmp_path / "run")
    assert all("train/loss" in row for row in before)
    done = run("train.py", *given, f"launch.ranks={ranks}", cwd=tmp_path)
    assert "finished" in done.stdout
    rows = metrics(tmp_path / "run")
    assert rows[: len(before)] == before
    assert [sorted(row) for row in rows[len(before) :]] == [sorted(rows[-1])] and "val/top1" in rows[-1]
    assert rows[-1]["step"] == before[-1]["step"]


@pytest.mark.parametrize("delay", [pytest.param(0.5, marks=LONG), 2.5])
def test_ranks_end_with_a_parent_that_is_killed_during_start_up(delay, digits, tmp_path):
    process = start("train.py", *SMALL, f"data.root={digits}", "launch.ranks=2", "output_dir=run", cwd=tmp_path)
    wait_for(lambda: len(members(process.pid)) >= 3)  # the parent and what it spawned
    time.sleep(delay)
    process.kill()
    process.wait()
    began = time.monotonic()
    while members(process.pid) and time.monotonic() - began < 15:
        time.sleep(0.05)
    assert time.monotonic() - began < 10
    for stream in (process.stdout, process.stderr):
        stream.close()


def test_ctrl_c_during_start_up_leaves_nothing(digits, tmp_path):
    """The whole group hears it: parent and ranks, some of which have no handler yet."""
    process = start("train.py", *SMALL, f"data.root={digits}", "launch.ranks=3", "train.batch_size=21", cwd=tmp_path)
    wait_for(lambda: len(members(process.pid)) >= 4)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (75, -signal.SIGINT), err
    wait_for(lambda: not members(process.pid), seconds=10)


@pytest.mark.parametrize("seed", [pytest.param(300_000_000, marks=LONG), 2**63 - 1])
def test_large_seeds(seed, digits, tmp_path):
    given = [*SMALL, f"data.root={digits}", "augmentation=advanced", "train.max_steps=2", "backbone.dropout=0.1"]
    run("train.py", *given, f"seed={seed}", "output_dir=a", cwd=tmp_path)
    run("train.py", *given, f"seed={seed - 1}", "output_dir=b", cwd=tmp_path)
    assert checkpoint(tmp_path / "a")["progress"]["step"] == 2
    assert differences(tmp_path / "a", tmp_path / "b")


def test_an_incident_with_repeated_augmentation_is_rolled_back(digits, tmp_path):
    given = [*SMALL, f"data.root={digits}", "augmentation.repeats=3", "optimizer.lr=1e30"]
    given += ["train.on_nonfinite=rollback", "train.rollback_lr_factor=1e-31", "output_dir=run"]
    done = run("train.py", *given, cwd=tmp_path)
    assert "back to step" in done.stdout
    (incident,) = (tmp_path / "run" / "incidents").glob("*/incident.json")
    (files,) = json.loads(incident.read_text())["files"]
    assert len(files) == 20 and len(set(files)) == 7  # three crops each of six images, two of one
    assert all((digits / "train" / file).is_file() for file in files)


@pytest.mark.parametrize(
    ("given", "code"), [(("explain=true",), 0), (("--multirun", "seed=1,2", "output_dir=sweep"), 2)]
)
def test_several_tasks_of_an_srun_speak_once(given, code, digits, tmp_path):
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_TASKS_PER_NODE": "2"}
    overrides = [*SMALL, f"data.root={digits}", "launch.ranks=null"]
    tasks = []
    for task in ("0", "1"):
        own = {**step, "SLURM_PROCID": task, "SLURM_LOCALID": task, "SLURM_JOB_ID": "1"}
        tasks.append(start("train.py", *given, *overrides, cwd=tmp_path, variables=own))
    outputs = [process.communicate(timeout=100) for process in tasks]
    assert [process.returncode for process in tasks] == [code, code], outputs
    assert outputs[1] == ("", "")
    assert ("learning rate" in outputs[0][0]) if code == 0 else ("srun --ntasks=1" in outputs[0][1])
    assert not (tmp_path / "sweep").exists()


def test_explain_with_a_batch_above_the_set(digits, tmp_path):
    given = [*SMALL, f"data.root={digits}", "train.batch_size=4000", "explain=true"]
    done = run("train.py", *given, cwd=tmp_path, code=2)
    assert "REFUSED        train.batch_size=4000 exceeds the 90 training images; lower it" in done.stdout


def test_the_first_thing_a_newcomer_tries(digits, tmp_path):
    """One epoch, then more of the same run by the same command: the folder's name holds nothing that may change."""
    given = ["experiment=digits", "logger=none", f"data.root={digits}", "train.batch_size=20", "loader.threads=1"]
    done = run("train.py", *given, "train.epochs=1", cwd=tmp_path)
    assert "schedule.warmup_epochs: 0.1, a tenth of the run (5 from 50 epochs on)" in done.stdout
    more = run("train.py", *given, "train.epochs=2", "train.checkpointing=[1]", "data.eval_batch_size=7", cwd=tmp_path)
    assert "data.eval_batch_size was 90, now 7; train.checkpointing was [], now [1]; train.epochs was 1, now 2" in (
        more.stdout
    )
    assert len(list(Path(tmp_path / "outputs").iterdir())) == 1
    refused = run(
        "train.py", *given, "train.epochs=1", "schedule.warmup_epochs=1", "output_dir=x", cwd=tmp_path, code=2
    )
    line = "schedule.warmup_epochs=1 must be below the run's 1 epochs; set schedule.warmup_epochs=0.1"
    assert line in refused.stderr
    evaluated = run("evaluate.py", f"checkpoint={next((tmp_path / 'outputs').iterdir())}", cwd=tmp_path)
    assert "/checkpoints/best.pt (" in evaluated.stdout
