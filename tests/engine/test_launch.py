"""What the launcher says of ranks that fail, in real processes."""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from multiprocessing import forkserver

import pytest
import torch
from programs import ROOT, SMALL, run_process, start

from cotnet.engine.distributed import join_ranks
from cotnet.engine.launch import launch
from cotnet.engine.signals import STOP_SIGNALS
from cotnet.errors import RunError

pytestmark = pytest.mark.slow


def one_fails(config, store):
    with join_ranks(store, timeout_minutes=1) as ranks:
        if ranks.rank == 1 and config["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if ranks.rank == 1:
            raise RunError("rank 1 has had enough")
        ranks.sum(torch.zeros(1))
    return 0


def test_the_rank_that_failed_is_heard_and_not_those_it_left_alone():
    with pytest.raises(RunError, match=r"^rank 1 has had enough$"):
        launch(one_fails, {"killed": False}, 3)


def test_a_killed_rank_is_said_in_a_line():
    with pytest.raises(RunError, match="terminated with signal SIGKILL; a rank that is killed often ran out of memory"):
        launch(one_fails, {"killed": True}, 3)


class Interrupted:
    """The first rank that reads it hears Ctrl-C while it still blocks it. folder: does not exist yet."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return arrived, (self.folder,)


def arrived(folder):
    try:
        folder.mkdir()
        os.kill(os.getpid(), signal.SIGINT)
    except FileExistsError:
        pass
    return Interrupted(folder)


def wait_for_all(given, store):
    store.set(os.environ["RANK"], "here")
    store.wait(["0", "1", "2"], timedelta(seconds=60))
    return 0


def test_a_rank_that_hears_ctrl_c_before_it_starts_ends_the_others(tmp_path):
    """torch's wrapper would end it with exit code 0, and the others would wait for it."""
    forkserver._forkserver._stop()  # data.prepare's, which another test of this process may have started
    began = time.monotonic()
    with pytest.raises(RunError, match="terminated with exit code 75"):
        launch(wait_for_all, Interrupted(tmp_path / "first"), 3)
    assert time.monotonic() - began < 40


def note(folder, store):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    seen = {"variable": os.environ.get("OF_THIS_LAUNCH"), "blocked": sorted(blocked), "path": sys.path}
    (folder / os.environ["RANK"]).write_text(json.dumps(seen))
    return 0


@pytest.mark.parametrize("value", ["first", None])
def test_ranks_get_the_environment_of_their_launch(value, tmp_path, monkeypatch):
    """Also the second launch of a process, though the fork server has the environment of the first."""
    if value:
        monkeypatch.setenv("OF_THIS_LAUNCH", value)
    assert launch(note, tmp_path, 2) == 0
    seen = [json.loads((tmp_path / rank).read_text()) for rank in ("0", "1")]
    assert seen == [{"variable": value, "blocked": [], "path": sys.path}] * 2


def test_the_fork_server_is_deaf_to_stop_signals(tmp_path):
    """A cluster may send them to every process of a job, and the ranks need time to save."""
    forkserver._forkserver._stop()  # data.prepare's, which another test of this process may have started
    assert launch(note, tmp_path, 2) == 0
    server = forkserver._forkserver._forkserver_pid
    for number in STOP_SIGNALS:
        os.kill(server, number)
    assert launch(note, tmp_path, 2) == 0
    assert forkserver._forkserver._forkserver_pid == server


@pytest.mark.long
def test_a_long_folder_for_temporary_files_is_one_line(digits, tmp_path):
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    given = [*SMALL, f"data.root={digits}", "launch.ranks=2"]
    done = start("train.py", *given, cwd=tmp_path, variables={"TMPDIR": str(folder)})
    _, err = done.communicate(timeout=100)
    line = (
        f"error: ranks cannot start with temporary files in {folder}: AF_UNIX path too long; set TMPDIR to a short path"
    )
    assert done.returncode == 2 and line in err and len(err.splitlines()) == 1


def test_the_fork_server_touches_no_gpu():
    """CUDA, once asked, does not work in forked processes."""
    ask = "import torch; torch._C._cuda_getDeviceCount = torch._C._cuda_init = lambda: exit('asked for GPUs')"
    imported = "import cotnet.engine.fork_server; print('imported')"
    done = run_process("-c", f"{ask}; {imported}; torch.cuda.is_available()", cwd=ROOT, code=None)
    assert done.stdout == "imported\n"
    assert done.stderr == "asked for GPUs\n" or not torch.version.cuda


def add_on_the_gpu(folder, store):
    (folder / os.environ["RANK"]).write_text(str(torch.ones(3, device="cuda").sum().item()))
    return 0


@pytest.mark.gpu
def test_forked_ranks_use_the_gpu(tmp_path):
    assert launch(add_on_the_gpu, tmp_path, 2) == 0
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["3.0", "3.0"]
