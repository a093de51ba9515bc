"""Offline runs sent to a W&B server of the loopback, by the real wandb."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from programs import ROOT
from wandb_server import wandb_server

from cotnet.engine import records

pytestmark = pytest.mark.slow

WRITE = """
import sys
from pathlib import Path
from cotnet.engine import loggers, records
from cotnet.engine.loggers import WandbLogger
loggers.READY_SECONDS = 30.0  # a busy machine may need more than a run would wait
folder, run_id = Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
for steps in sys.argv[3:]:
    logger = WandbLogger(project="cotnet", entity=None, group=None, tags=(), mode="offline")
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


def sync(folder: Path, code: int, home: Path, address: str = "", key: str = "0123456789" * 4) -> tuple[str, str]:
    """What it printed and the errors; it must exit with `code`."""
    given = {"WANDB_BASE_URL": address} | ({"WANDB_API_KEY": key} if key else {}) if address else {}
    command = [sys.executable, "-m", "cotnet.sync", str(folder)]
    done = subprocess.run(
        command, cwd=home, env=environment(home, **given), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def held(address: str) -> dict[str, dict]:
    with urllib.request.urlopen(f"{address}/runs") as answer:
        return json.load(answer)


def test_offline_runs_are_sent_once_and_a_continued_run_is_one(tmp_path):
    outputs = tmp_path / "outputs"
    for run, *steps in (("a", "0,5", "3,12", "12,15 9,14"), ("deep/b", "0,7")):  # a: killed, continued, rolled back
        command = [sys.executable, "-c", WRITE, str(outputs / run), f"{run[-1]}bcd1234", *steps]
        subprocess.run(command, env=environment(tmp_path), check=True, capture_output=True)
    assert "no folder" in sync(tmp_path / "nowhere", 2, tmp_path)[1]
    assert "not logged in to W&B, 4 offline runs wait" in sync(outputs, 2, tmp_path)[1]
    with wandb_server(tmp_path, "failing") as (address, _):
        assert f"W&B at {address} does not answer (HTTP Error 500" in sync(outputs, 1, tmp_path, address)[1]
    with wandb_server(tmp_path, "full") as (address, _):
        assert "4 of 4 offline runs were not sent" in sync(outputs, 1, tmp_path, address)[1]
    with wandb_server(tmp_path) as (address, _):
        lock = outputs / "deep" / "b" / ".lock"
        lock.touch()
        with subprocess.Popen(["flock", str(lock), "sleep", "100"], start_new_session=True) as process:
            time.sleep(0.5)
            out, _ = sync(outputs, 0, tmp_path, address)
            os.killpg(process.pid, 9)
        assert "1 offline run(s) are still being written" in out
        assert held(address).keys() == {"abcd1234"}
        sync(outputs, 0, tmp_path, address)
        runs = held(address)
        for run in ("a", "deep/b"):
            sent = runs[f"{run[-1]}bcd1234"]
            rows = [{name: row[name] for name in ("step", "train/loss")} for row in sent["rows"]]
            assert rows == records.read(outputs / run / "metrics.jsonl")
            assert json.loads(sent["config"])["seed"] == {"value": 3}
            assert sent["ended"] == 0
        assert sync(outputs, 0, tmp_path, address)[0] == f"nothing to sync below {outputs}\n"
        assert held(address) == runs
