"""Offline runs sent to a W&B server of the loopback, by the real wandb."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import ROOT, SMALL, run_process, start
from wandb_file import history, summary
from wandb_process import files
from wandb_server import held, wandb_server

from cotnet import records
from cotnet.reporting.wandb_file import latest_id, read_start
from cotnet.sync import main

WRITE = """
import sys
from pathlib import Path
from cotnet.reporting import wandb_logger
from cotnet import records
from cotnet.reporting.wandb_logger import WandbLogger
wandb_logger.READY_SECONDS = 30.0  # a busy machine may need more than a run would wait
folder, run_id = Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
for steps in sys.argv[3:]:
    unset = dict.fromkeys(("entity", "job_type", "watch")) | {"notes": "a note"}
    unset |= dict.fromkeys(("artifacts", "save_code", "system_metrics"), False)
    logger = WandbLogger(project="cotnet", group="g", tags=("t",), mode="offline", **unset)
    logger.start(folder, {"seed": 3}, run_id, "a-run")
    for part in steps.split(" "):
        for step in range(*map(int, part.split(","))):
            record = {"step": step, "train/loss": 1 / (step + 3)}
            records.append(folder / "metrics.jsonl", record)
            logger.log(record)
    logger.finish(0)
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nobody logged in, no setting of this machine's user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    return kept | {"HOME": str(home), "WANDB_CONFIG_DIR": str(home), "PYTHONPATH": str(ROOT)} | more


def sync(folder: Path, code: int, home: Path, address: str = "", *options: str) -> tuple[str, str]:
    """What it printed and the errors; it must exit with `code`."""
    given = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0123456789" * 4} if address else {}
    command = [sys.executable, "-m", "cotnet.sync", *options, str(folder)]
    done = subprocess.run(
        command, cwd=home, env=environment(home, **given), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def write(folder: Path, home: Path, *steps: str) -> None:
    """A run in `folder` whose W&B id is made of the folder's name; each of `steps` is one start."""
    command = [sys.executable, "-c", WRITE, str(folder), f"{folder.name}bcd1234", *steps]
    subprocess.run(command, env=environment(home), check=True, capture_output=True)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """As while a process trains in it."""
    (folder / ".lock").touch()
    with subprocess.Popen(["flock", str(folder / ".lock"), "sleep", "100"], start_new_session=True) as process:
        time.sleep(0.5)
        yield
        os.killpg(process.pid, 9)


def own(rows: list[dict]) -> list[dict]:
    """Rows without W&B's own columns."""
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


@pytest.mark.long
@pytest.mark.slow
def test_offline_runs_are_sent_once_and_a_continued_run_is_one(tmp_path):
    outputs = tmp_path / "outputs"
    write(outputs / "a", tmp_path, "0,5", "3,12", "12,15 9,14")  # killed, continued, rolled back
    write(outputs / "deep" / "b", tmp_path, "0,7")
    assert "no folder" in sync(tmp_path / "nowhere", 2, tmp_path)[1]
    assert "not logged in to W&B, 4 offline runs wait" in sync(outputs, 2, tmp_path)[1]
    with wandb_server(tmp_path, "failing") as (address, _):
        assert f"W&B at {address} does not answer (HTTP Error 500" in sync(outputs, 1, tmp_path, address)[1]
    with wandb_server(tmp_path, "full") as (address, _):
        assert "4 of 4 offline runs were not sent" in sync(outputs, 1, tmp_path, address)[1]
    with wandb_server(tmp_path) as (address, _):
        with in_use(outputs / "deep" / "b"):
            out, _ = sync(outputs, 0, tmp_path, address)
        assert "1 offline run(s) are still being written" in out
        assert held(address).keys() == {"abcd1234"}
        sync(outputs, 0, tmp_path, address)
        runs = held(address)
        for run in ("a", "deep/b"):
            sent = runs[f"{run[-1]}bcd1234"]
            assert own(sent["rows"]) == records.read(outputs / run / "metrics.jsonl")
            assert json.loads(sent["config"])["seed"] == {"value": 3}
            assert sent["ended"] == 0
        assert sync(outputs, 0, tmp_path, address)[0] == f"nothing to sync below {outputs}\n"
        assert held(address) == runs


@pytest.mark.long
@pytest.mark.slow
def test_a_run_whose_record_differs_is_rebuilt_from_its_metrics(tmp_path):
    outputs, best = tmp_path / "outputs", {"best_top1": 60.0, "best_top5": 90.0, "best_epoch": 2, "best_weights": "ema"}
    write(outputs / "a", tmp_path, "0,5", "5,9")
    write(outputs / "deep" / "b", tmp_path, "0,7")
    metrics = outputs / "a" / "metrics.jsonl"
    rows = [*records.read(metrics)[:7], {"step": 7, "train/loss": 0.5, "train/grad_norm": None}]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records.write_json(
        outputs / "a" / "summary.json", {"status": "finished", **best, "wandb": {"missing": 1, "extra": 2}}
    )

    with in_use(outputs / "a"):
        assert "a is in use by another process" in sync(outputs / "a", 2, tmp_path, "", "--rebuild")[1]
        assert "left out: " in sync(outputs, 2, tmp_path, "", "--rebuild")[0]  # nothing rebuilt, nobody logged in
    assert "no run below" in sync(tmp_path / "outputs" / "deep" / "b" / "wandb", 2, tmp_path, "", "--rebuild")[1]
    out, _ = sync(outputs, 0, tmp_path, "", "--rebuild")
    assert out.splitlines() == [
        f"{outputs / 'a'}: rebuilt from metrics.jsonl as W&B run abcd1234-r1",
        f"not logged in to W&B, 2 offline runs wait; run wandb login, then python -m cotnet.sync {outputs}",
    ]
    *old, new = files(outputs / "a")
    assert [file.with_name(f"{file.name}.synced").exists() for file in (*old, new)] == [True, True, False]
    assert own(history(new))[:7] == rows[:7]
    assert json.loads((outputs / "a" / "summary.json").read_text()) == {"status": "finished", **best}
    # As if it had been killed before it was done, and another time in the middle of writing.
    old[0].with_name(f"{old[0].name}.synced").unlink()
    shutil.copytree(new.parent, outputs / "a" / "wandb" / ".rebuild" / "wandb" / "offline-run-1-abcd1234-r2")
    with wandb_server(tmp_path) as (address, _):
        sync(outputs, 0, tmp_path, address, "--rebuild")  # the same now: only sent
        runs = held(address)
        assert runs.keys() == {"abcd1234-r1", "bbcd1234"}
        sent = runs["abcd1234-r1"]
        assert own(sent["rows"])[:7] == rows[:7]
        (last,) = own(sent["rows"])[7:]
        assert math.isnan(last["train/grad_norm"])
        assert last | {"train/grad_norm": None} == rows[7]
        assert json.loads(sent["config"])["seed"] == {"value": 3}
        assert sent["named"] == {
            "displayName": "a-run",
            "groupName": "g",
            "tags": ["t"],
            "notes": "a note Rebuilt from metrics.jsonl; replaces W&B run abcd1234.",
        }
        assert best.items() <= sent["summary"].items()
        assert sent["ended"] == 0
        out, _ = sync(outputs / "deep" / "b", 0, tmp_path, address, "--rebuild")  # named itself: in any case
        assert "as W&B run bbcd1234-r1; what was sent of bbcd1234 stays on the server: delete it there" in out
        assert own(held(address)["bbcd1234-r1"]["rows"]) == own(runs["bbcd1234"]["rows"])


ONLINE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from cotnet.reporting import wandb_logger
from cotnet import records
wandb_logger.READY_SECONDS = 30.0
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
metrics = folder / "metrics.jsonl"
kept = records.read(metrics) if metrics.exists() else []
unset = dict.fromkeys(("entity", "group", "notes", "job_type", "watch"))
unset |= dict.fromkeys(("artifacts", "save_code", "system_metrics"), False)
logger = wandb_logger.WandbLogger(project="cotnet", tags=(), mode="online", **unset)
logger.start(folder, {}, "abcd1234", "a-run", kept=kept)
for step in range(len(kept), len(kept) + 4):
    records.append(metrics, {"step": step, "train/loss": 1 / (step + 3)})
    logger.log({"step": step, "train/loss": 1 / (step + 3)})
if sys.argv[2] == "killed":
    time.sleep(1.5)  # written, not sent: wandb sends every 15 s
    subprocess.run(["pkill", "-9", "-P", str(os.getpid()), "wandb-core"])
    os.kill(os.getpid(), signal.SIGKILL)
print(logger.finish(0))
"""


@pytest.mark.long
@pytest.mark.slow
def test_rows_that_did_not_reach_the_server_before_a_kill_are_sent_when_the_run_continues(tmp_path):
    with wandb_server(tmp_path) as (address, _):
        given = environment(tmp_path, WANDB_BASE_URL=address, WANDB_API_KEY="0123456789" * 4)
        for end, code in (("killed", -9), ("", 0), ("killed", -9), ("", 0)):
            command = [sys.executable, "-c", ONLINE, str(tmp_path / "run"), end]
            done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            if end:
                continue
            assert done.stdout.splitlines()[-1] == "{}"
            assert own(held(address)["abcd1234"]["rows"]) == records.read(tmp_path / "run" / "metrics.jsonl")


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_is_killed_continued_and_rebuilt(tmp_path, digits):
    """kill -9 of train.py: W&B lacks nothing afterwards, what it has twice is counted; a rebuilt run goes on."""
    command = ["train.py", *SMALL, f"data.root={digits}", "logger=wandb", "logger.mode=offline", "train.log_every=1"]
    command += ["checkpoint.every_steps=1", "launch.ranks=1", "output_dir=run", "train.max_steps=6"]
    folder = tmp_path / "run"
    metrics = folder / "metrics.jsonl"
    with start(*command, cwd=tmp_path) as process:
        while not (metrics.exists() and len(records.read(metrics)) > 2):
            time.sleep(0.02)
        os.killpg(process.pid, 9)
    run_process(*command, cwd=tmp_path)
    rows = records.read(metrics)
    logged = [row for file in files(folder) for row in history(file)]
    assert [row for row in rows if row not in logged] == []
    found = {"missing": 0, "extra": len(logged) - len(rows)}
    assert json.loads((folder / "summary.json").read_text()).get("wandb", {"missing": 0, "extra": 0}) == found
    run_id = read_start(files(folder)[0]).run.run_id

    sync(folder, 0, tmp_path, "", "--rebuild")
    assert history(files(folder)[-1]) == rows
    run_process(*command[:-1], "train.max_steps=8", cwd=tmp_path)
    pieces = [file for file in files(folder) if file.stem == f"run-{run_id}-r1"]
    assert [row for file in pieces for row in history(file)] == records.read(metrics)
    assert "wandb" not in json.loads((folder / "summary.json").read_text())
    best = {name: value for name, value in json.loads((folder / "summary.json").read_text()).items() if "best" in name}
    assert best.items() <= summary(pieces[-1]).items()


def test_the_latest_rebuilt_run_is_the_one_to_continue(tmp_path):
    for name in ("ab", "ab-r2", "ab-r10", "cd-r30"):
        file = tmp_path / "wandb" / f"offline-run-1-{name}" / f"run-{name}.wandb"
        file.parent.mkdir(parents=True)
        file.touch()
    assert [latest_id(tmp_path, name) for name in ("ab", "ab-r2", "cd", "ef")] == ["ab-r10", "ab-r10", "cd-r30", "ef"]


def test_the_help_says_what_rebuilding_does(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sync", "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "python -m cotnet.sync [-h] [--rebuild] [FOLDER]" in text
    assert "exit codes: 0 all sent" in text
