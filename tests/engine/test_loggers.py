"""The mirrors of metrics.jsonl, with the real wandb in processes of their own, as a run has it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from wandb_file import history, wandb_records
from wandb_server import wandb_server

from cotnet.engine import records
from cotnet.engine.loggers import NoLogger

PROLOGUE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from cotnet.engine import loggers, records
from cotnet.engine.loggers import WandbLogger
ready, loggers.READY_SECONDS = loggers.READY_SECONDS, 30.0  # a busy machine may need more than a run would wait
folder = Path(sys.argv[1])
logger = WandbLogger(project="cotnet", entity=None, group="g", tags=("a", "b"), mode=sys.argv[2])

def write(record):
    records.append(folder / "metrics.jsonl", record)
    logger.log(record)

def core():
    return int(subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True).stdout)
"""


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Nobody logged in, no setting of this machine's user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    return kept | {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)} | more


def start(
    code: str, folder: Path, environment: dict[str, str], mode: str = "auto", *arguments: str
) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROLOGUE + code, str(folder), mode, *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def run(*arguments, code: int = 0, **more) -> str:
    """What the process printed; it must end with `code`, printing no error."""
    process = start(*arguments, **more)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    return out


def files(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("*run-*/run-*.wandb"))


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
    metrics = [record.metric for record in wandb_records(first) if record.WhichOneof("record_type") == "metric"]
    assert [metric.step_metric for metric in metrics if metric.glob_name == "*"] == ["step"]


def test_wandbs_own_switches_are_obeyed(tmp_path):
    code = 'logger.start(folder, {}, None, "r"); write({"step": 1}); logger.finish(0)'
    out = run(code, tmp_path / "a", environment(tmp_path, WANDB_MODE="disabled", WANDB_API_KEY="k" * 40))
    assert out == "W&B: disabled (W&B's own setting)\n"
    assert files(tmp_path / "a") == []


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


@pytest.mark.slow
def test_training_goes_on_when_wandbs_process_dies_or_hangs(tmp_path):
    died = """
logger.start(folder, {}, None, "r")
os.kill(core(), signal.SIGKILL)
time.sleep(0.3)
for step in range(100):
    write({"step": step})
    time.sleep(0.001)
logger.finish(0)
sys.exit(75)
"""
    lines = run(died, tmp_path / "died", environment(tmp_path), "offline", code=75).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("W&B stopped (")
    assert lines[1].endswith(f"wandb sync {tmp_path / 'died' / 'wandb'} --include-online")
    assert len(records.read(tmp_path / "died" / "metrics.jsonl")) == 100

    hung = """
logger.start(folder, {}, None, "r")
hung = core()
os.kill(hung, signal.SIGSTOP)
began = time.monotonic()
for step in range(5000):
    logger.log({"step": step})
print(time.monotonic() - began)
os.kill(hung, signal.SIGCONT)
logger.finish(0)
"""
    seconds = float(run(hung, tmp_path / "hung", environment(tmp_path), "offline").splitlines()[1])
    assert seconds < 2
    (file,) = files(tmp_path / "hung")
    assert history(file) == [{"step": step} for step in range(5000)]


@pytest.mark.slow
def test_wandbs_process_ends_with_a_run_that_is_killed(tmp_path):
    code = 'logger.start(folder, {}, None, "r"); write({"step": 1}); print(core(), flush=True); time.sleep(60)'
    process = start(code, tmp_path / "run", environment(tmp_path), "offline")
    process.stdout.readline()
    core = Path("/proc") / process.stdout.readline().strip()
    assert core.exists()
    time.sleep(1.5)  # the figures reach the file every second
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while core.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not core.exists()
    assert history(files(tmp_path / "run")[0]) == [{"step": 1}]


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_a_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"  # closed again: nobody listens there
    code = """
loggers.READY_SECONDS = ready
began = time.monotonic()
run_id = logger.start(folder, {}, None, "r")
print(time.monotonic() - began)
for step in range(50):
    write({"step": step})
logger.finish(0)
print(run_id, time.monotonic() - began)
"""
    (tmp_path / ".netrc").write_text(f"machine {address[7:]} login user password {'0123456789' * 4}\n")
    logged_in = environment(tmp_path, WANDB_BASE_URL=address)
    waited, line, end = run(code, tmp_path / "run", logged_in, "auto").splitlines()
    run_id, seconds = end.split()
    assert float(waited) < 4
    assert float(seconds) < 25
    assert line.startswith(f"W&B: offline ({address}: ")
    (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    assert history(file) == records.read(tmp_path / "run" / "metrics.jsonl")


OUTAGE = """
loggers.READY_SECONDS, loggers.FINISH_SECONDS = ready, 6.0
loggers.WANDB_SETTINGS |= {"init_timeout": 3.0, "finish_timeout": 3.0}
began = time.monotonic()
logger.start(folder, {}, None, "r")
started = time.monotonic()
if len(sys.argv) > 3:
    time.sleep(2)
    os.kill(int(sys.argv[3]), signal.SIGSTOP)  # the server, which was there until now
longest = 0.0
for step in range(500):
    time.sleep(0.005)
    before = time.monotonic()
    write({"step": step, "train/loss": 1 / (step + 3)})
    longest = max(longest, time.monotonic() - before)
trained = time.monotonic()
logger.finish(0)
print("times", started - began, longest, time.monotonic() - trained)
"""


@pytest.mark.slow
def test_a_server_that_hangs_fails_refuses_or_goes_away_costs_training_nothing(tmp_path):
    """The start waits two seconds, a record nothing, the end as long as it is allowed to; all rows are on the disk."""
    with ExitStack() as stack:
        runs = {}
        for mode in ("hanging", "failing", "full", "healthy"):
            address, server = stack.enter_context(wandb_server(tmp_path, mode))
            given = environment(tmp_path, WANDB_BASE_URL=address, WANDB_API_KEY="0123456789" * 4)
            stopped = [str(server.pid)] if mode == "healthy" else []
            runs[mode] = start(OUTAGE, tmp_path / mode, given, "auto", *stopped)
        for mode, process in runs.items():
            out, _ = process.communicate(timeout=90)
            assert process.returncode == 0
            started, longest, ended = map(float, out.splitlines()[-1].split()[1:])
            assert (started < 4, longest < 0.5, ended < 12) == (True, True, True), (mode, out)
            rows = records.read(tmp_path / mode / "metrics.jsonl")
            assert len(rows) == 500
            assert history(files(tmp_path / mode)[0]) == rows, mode


@pytest.mark.slow
def test_a_full_disk_under_wandbs_folder_costs_training_nothing(tmp_path):
    """The limit on the size of files stands in for it: wandb's process meets it after 64 KiB."""
    code = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
logger.start(folder, {}, None, "r")
began = time.monotonic()
for step in range(20_000):
    logger.log({"step": step, "train/loss": 1 / (step + 3)})
logged = time.monotonic()
logger.finish(0)
print("times", logged - began, time.monotonic() - logged)
"""
    process = start(code, tmp_path / "run", environment(tmp_path), "offline")
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    logged, ended = map(float, out.splitlines()[-1].split()[1:])
    assert logged < 5
    assert ended < 40
    assert 0 < files(tmp_path / "run")[0].stat().st_size <= 65536


def test_no_logger_does_nothing(tmp_path):
    logger = NoLogger()
    assert logger.start(tmp_path, {}, None, "name") == ""
    logger.log({"step": 1})
    logger.finish(0)
    assert list(tmp_path.iterdir()) == []


def test_the_module_starts_without_wandb_and_matplotlib():
    code = "import sys, cotnet.engine.loggers; print(sorted({'wandb', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
