"""The mirrors of metrics.jsonl, with the real wandb in processes of their own, as a run has it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_file import history
from wandb_process import environment, files, run, start
from wandb_server import held, wandb_server

from cotnet import records
from cotnet.reporting.wandb_file import read_start, wandb_records
from cotnet.reporting.wandb_logger import NoLogger

pytestmark = pytest.mark.slow


@pytest.fixture
def listener() -> Iterator[tuple[str, list[object]]]:
    """The address of a port on the loopback, and whoever connected to it."""
    visitors: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    visitors.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", visitors
        server.shutdown(socket.SHUT_RDWR)


WRITE_STEPS = """
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
began = time.monotonic()
run_id = logger.start(folder, {"train": {"epochs": 3}}, sys.argv[3] or None, "a-run")
first, last = int(sys.argv[4]), int(sys.argv[5])
for step in range(first, last):
    write({"step": step, "epoch": step / 7, "train/loss": 1 / (step + 3), "train/lr": 0.1 * step})
write({"step": last - 1, "epoch": (last - 1) / 7, "val/top1": 100 / 3, "val/top1_ema": 200 / 3, "val/images": 357})
logger.finish(0)
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
print(run_id, time.monotonic() - began)
"""


@pytest.mark.slow
def test_without_a_login_the_run_is_offline_and_mirrors_the_metrics_over_two_processes(tmp_path, listener):
    address, visitors = listener
    names = ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    nobody = environment(tmp_path, **dict.fromkeys(names, address))
    folder = tmp_path / "run"

    line, end = run(WRITE_STEPS, folder, nobody, "auto", "", "1", "400").splitlines()
    assert line == f"W&B: offline (not logged in); to upload it later: wandb sync {folder}/wandb"
    run_id, seconds = end.split()
    assert float(seconds) < 10
    (first,) = files(folder)
    assert history(first) == records.read(folder / "metrics.jsonl")
    assert len(history(first)) == 400

    before = len(records.read(folder / "metrics.jsonl"))
    again = run(WRITE_STEPS, folder, nobody, "auto", run_id, "400", "450").splitlines()[-1].split()[0]
    assert again == run_id
    assert {file.name for file in files(folder)} == {f"run-{run_id}.wandb"}
    assert history(files(folder)[1]) == records.read(folder / "metrics.jsonl")[before:]
    assert visitors == []

    by_kind = {record.WhichOneof("record_type"): record for record in wandb_records(first)}
    assert (by_kind["run"].run.run_id, by_kind["run"].run.display_name) == (run_id, "a-run")
    assert (by_kind["run"].run.project, by_kind["run"].run.run_group) == ("cotnet", "g")
    assert list(by_kind["run"].run.tags) == ["a", "b"]
    assert [update.key for update in by_kind["run"].run.config.update if update.key == "train"] == ["train"]
    assert by_kind["exit"].exit.exit_code == 0
    for position in (20, 10_000, 40_000):  # cut off in the middle of a row; a wrong byte
        whole = first.read_bytes()
        for name, content in (("cut", whole[:position]), ("bad", whole[:position] + b"?" + whole[position + 1 :])):
            damaged = tmp_path / name
            damaged.write_bytes(content)
            assert history(damaged) == history(first)[: len(history(damaged))]
            assert len(history(damaged)) < 400
    metrics = [record.metric for record in wandb_records(first) if record.WhichOneof("record_type") == "metric"]
    assert [metric.step_metric for metric in metrics if metric.glob_name == "*"] == ["step"]


def test_wandbs_own_switches_are_obeyed(tmp_path):
    code = 'logger.start(folder, {}, None, "r"); write({"step": 1}); logger.finish(0)'
    out = run(code, tmp_path / "a", environment(tmp_path, WANDB_MODE="disabled", WANDB_API_KEY="k" * 40))
    assert out == "W&B: disabled (W&B's own setting)\n"
    assert files(tmp_path / "a") == []


NAMES = """
own = {"project": "p", "group": "g", "tags": ("t",), "notes": "n", "job_type": "j"}
for place, keys in (("unset", {}), ("set", own))[: int(sys.argv[3])]:
    given = unset | dict.fromkeys(("project", "entity", "group", "notes", "job_type")) | {"tags": ()} | keys
    logger = WandbLogger(mode="offline", **given)
    logger.start(folder / place, {}, None, "folder")
    logger.finish(0)
"""


@pytest.mark.long
def test_what_is_not_set_is_left_to_wandbs_variables(tmp_path):
    variables = {"WANDB_PROJECT": "P", "WANDB_ENTITY": "E", "WANDB_RUN_GROUP": "G", "WANDB_TAGS": "A,B"}
    variables |= {"WANDB_NAME": "N", "WANDB_NOTES": "long text", "WANDB_JOB_TYPE": "J"}
    assert names(tmp_path / "some", "2", **variables) == [
        ("P", "E", "G", ["A", "B"], "long text", "J", "N"),
        ("p", "E", "g", ["t"], "n", "j", "N"),
    ]
    assert names(tmp_path / "none", "1") == [("cotnet", "", "", [], "", "train", "folder")]


def names(folder: Path, keys: str, **variables: str) -> list[tuple]:
    """Under which names runs began, without settings and, if `keys` is 2, with them."""
    run(NAMES, folder, environment(folder.parent, **variables), "offline", keys)
    began = [read_start(files(folder / place)[0]).run for place in ("unset", "set")[: int(keys)]]
    return [(one.project, one.entity, one.run_group, list(one.tags), one.notes, one.job_type, one.display_name)
            for one in began]  # fmt: skip


CHECKPOINTS = """
(folder / "checkpoints").mkdir()
best, last = (folder / "checkpoints" / name for name in ("best.pt", "last.pt"))
best.write_bytes(b"one")
for content, code in ((b"two", 75), (b"two", 0), (b"three", 0)):
    last.unlink(missing_ok=True)  # a save replaces the file
    last.write_bytes(content)
    logger = WandbLogger(project="cotnet", group=None, tags=(), mode="offline", **unset | {"artifacts": True})
    logger.start(folder, {}, "1a2b3c4d", "r")
    logger.finish(code)
    time.sleep(1)  # wandb names a start by its second
"""


@pytest.mark.long
def test_each_checkpoint_is_an_artifact_once(tmp_path):
    """Three starts: cut, finished, finished with another last.pt; then they are sent."""
    run(CHECKPOINTS, tmp_path / "run", environment(tmp_path))
    logged = []
    for number, file in enumerate(files(tmp_path / "run")):
        for artifact in (record.artifact for record in wandb_records(file) if record.HasField("artifact")):
            (entry,) = artifact.manifest.contents
            assert (artifact.type, artifact.name) == ("model", "model-1a2b3c4d")
            aliases = set(artifact.aliases) - {"latest"} or {"latest"}  # W&B's own alias of the newest
            logged.append((number, entry.path, aliases, Path(entry.local_path).read_bytes()))
    assert logged == [
        (1, "best.pt", {"best"}, b"one"),
        (1, "last.pt", {"latest"}, b"two"),
        (2, "last.pt", {"latest"}, b"three"),
    ]
    with wandb_server(tmp_path) as (address, _):
        given = environment(tmp_path, WANDB_BASE_URL=address, WANDB_API_KEY="k" * 40)
        command = [sys.executable, "-m", "cotnet.sync", str(tmp_path / "run")]
        subprocess.run(command, env=given, capture_output=True, check=True)
        artifacts, uploads = held(address, "artifacts"), held(address, "uploads")
    assert [artifact["committed"] for artifact in artifacts.values()] == [True] * 3
    sent = [uploads[f"/uploads/{owner}/{name}"] for owner in artifacts for name in ("best.pt", "last.pt")
            if f"/uploads/{owner}/{name}" in uploads]  # fmt: skip
    assert sorted(sent) == ["one", "three", "two"]


def test_signals_reach_the_run_alone_and_the_rest_is_still_written(tmp_path):
    """Ctrl-C goes to the whole process group; wandb's process must outlive it until finish."""
    code = """
received = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: received.append(number))
logger.start(folder, {}, "abcd1234", "r")
write({"step": 0})
print("ready", flush=True)
step = 0
while len(received) < 2:
    time.sleep(0.01)
for step in range(1, 100):
    write({"step": step})
logger.finish(75)
print(sorted(received))
sys.exit(75)
"""
    process = start(code, tmp_path / "run", environment(tmp_path), "offline")
    assert process.stdout.readline().startswith("W&B: offline (logger.mode)")
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (75, f"[{signal.SIGINT:d}, {signal.SIGTERM:d}]\n", "")
    (file,) = files(tmp_path / "run")
    assert history(file) == [{"step": step} for step in range(100)]
    assert [record.exit.exit_code for record in wandb_records(file) if record.HasField("exit")] == [75]


def test_no_logger_does_nothing(tmp_path):
    logger = NoLogger()
    assert logger.start(tmp_path, {}, None, "name", kept=[{"step": 1}]) == ""
    logger.log({"step": 1})
    logger.summary({"best_top1": 1.0})
    assert logger.finish(0) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_module_starts_without_wandb_and_matplotlib():
    code = "import sys, cotnet.reporting.wandb_logger; print(sorted({'wandb', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
