"""What becomes of W&B's process, server or disk costs a run nothing: the real wandb, servers that are out of order."""

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from wandb_file import history
from wandb_process import environment, files, run, start
from wandb_server import wandb_server

from cotnet import records

pytestmark = pytest.mark.slow


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_a_server_that_does_not_answer_costs_a_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"  # closed again: nobody listens there
    code = """
wandb_logger.READY_SECONDS = ready
wandb_session.WANDB_SETTINGS |= {"init_timeout": 4.0}
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
    assert float(seconds) < 15
    assert line.startswith(f"W&B: offline ({address}: ")
    (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    assert history(file) == records.read(tmp_path / "run" / "metrics.jsonl")


OUTAGE = """
wandb_logger.READY_SECONDS, wandb_logger.FINISH_SECONDS = ready, 6.0
wandb_session.WANDB_SETTINGS |= {"init_timeout": 3.0, "finish_timeout": 3.0}
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


@pytest.mark.long
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


@pytest.mark.long
def test_a_full_disk_under_wandbs_folder_costs_training_nothing(tmp_path):
    """The limit on the size of files stands in for it: wandb's process meets it after 64 KiB."""
    code = """
import resource
wandb_logger.FINISH_SECONDS = 6.0
wandb_session.WANDB_SETTINGS |= {"finish_timeout": 3.0}
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
    assert ended < 12
    assert 0 < files(tmp_path / "run")[0].stat().st_size <= 65536
