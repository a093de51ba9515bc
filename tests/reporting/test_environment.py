import subprocess
from pathlib import Path

import torch

from cotnet.reporting import environment
from cotnet.reporting.environment import driver, git_state, start_of


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", folder, *identity, *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_code_and_its_commit(tmp_path):
    code = tmp_path / "cotnet" / "reporting" / "environment.py"
    code.parent.mkdir(parents=True)
    code.write_text("a = 1\n")
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # a repository that the code is no part of
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("no code")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    code.write_text("a = 2\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    git(tmp_path, "checkout", "-q", ".")
    (tmp_path / "cotnet" / "new.yaml").write_text("b: 1\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_without_git_there_is_no_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(environment.CODE) is None


def test_the_driver_is_read_from_its_kernel_module(tmp_path):
    file = tmp_path / "version"
    assert driver(file) is None
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC\n")
    assert driver(file) == "535.104.05"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (a@b)\n")
    assert driver(file) == "580.65.06"


def test_a_start_names_versions_and_no_host():
    start = start_of(7, 2)
    assert (start["step"], start["ranks"], start["cuda"]) == (7, 2, torch.version.cuda)
    assert start["versions"]["torch"].split("+")[0] == str(torch.__version__).split("+")[0]
    names = {
        "command",
        "time",
        "step",
        "ranks",
        "git",
        "cuda",
        "driver",
        "processor",
        "cores",
        "memory_gib",
        "gpus",
        "versions",
    }
    assert start.keys() == names
