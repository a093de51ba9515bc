"""Runs that meet what days of training meet: numbers that overflow, hanging ranks, several machines, a cluster."""

import json
import os
import re
import shutil
import signal
import socket
import time

import pytest
from programs import SMALL, STEPS, assert_same_run, checkpoint, metrics, run, run_process, start

from cotnet.engine import checkpoints

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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.long
def test_two_torchrun_agents(uncut, digits, tmp_path):
    """Two nodes: an agent each, which meet by c10d; the same run as that of one command."""
    nodes = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test", "--local-addr=127.0.0.1")
    agent = ("-m", "torch.distributed.run", *nodes, f"--rdzv-endpoint=127.0.0.1:{free_port()}", "train.py")
    overrides = [*SMALL, f"data.root={digits}", "launch.ranks=null", "output_dir=run"]
    agents = [start(*agent, *overrides, cwd=tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=200) for process in agents]
    assert [process.returncode for process in agents] == [0, 0], outputs
    assert sum("best top-1" in out for out, _ in outputs) == 1  # one rank speaks
    assert_same_run(uncut(2), tmp_path / "run")


@pytest.mark.long
def test_tasks_of_one_srun(uncut, digits, tmp_path):
    """What srun sets for its tasks is enough for them to find each other."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_TASKS_PER_NODE": "2"}
    step |= {"SLURM_JOB_ID": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    overrides = [*SMALL, f"data.root={digits}", "launch.ranks=null", "output_dir=run"]
    tasks = []
    for task in ("0", "1"):
        own = {**step, "SLURM_PROCID": task, "SLURM_LOCALID": task}
        tasks.append(start("train.py", *overrides, cwd=tmp_path, variables=own))
    outputs = [process.communicate(timeout=200) for process in tasks]
    assert [process.returncode for process in tasks] == [0, 0], outputs
    assert_same_run(uncut(2), tmp_path / "run")


@pytest.mark.long
def test_a_hanging_rank_ends_the_run(digits, tmp_path):
    """One of two ranks is stopped: the other waits no longer than it may, and the line says where to look."""
    overrides = [*SMALL, f"data.root={digits}", "launch.ranks=2", "launch.timeout_minutes=0.1", "train.epochs=500"]
    process = start("train.py", *overrides, "output_dir=run", cwd=tmp_path)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (server,) = os.popen(f"pgrep -P {process.pid} -f forkserver").read().split()
    ranks = [int(pid) for pid in os.popen(f"pgrep -P {server}").read().split()]
    os.kill(max(ranks), signal.SIGSTOP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "timed out waiting for another rank" in line and "launch.timeout_minutes" in line
    assert "Traceback" not in err


@pytest.mark.long
def test_what_changed_is_said(uncut, digits, tmp_path):
    """Another rank count and more epochs are allowed, and named; the rest is refused, with what would be allowed."""
    shutil.copytree(uncut(2), tmp_path / "run")
    overrides = [*SMALL, f"data.root={digits}", "output_dir=run", "logger=wandb", "train.epochs=3"]
    refused = run("train.py", *overrides, "optimizer.lr=0.1", cwd=tmp_path, code=2).stderr
    assert "optimizer.lr was 0.03125, now 0.1" in refused
    assert "what may change: train.epochs, train.max_steps" in refused
    done = run("train.py", *overrides, "launch.ranks=1", "train.log_every=3", cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("continuing")]
    changes = [one for one in re.search(r"\((.*)\)", line)[1].split("; ") if not one.startswith("logger.")]
    assert changes == ["launch.ranks was 2, now 1", "train.epochs was 2, now 3", "train.log_every was 2, now 3"]


@pytest.mark.long
def test_a_preempted_job_is_requeued_and_continues(uncut, digits, tmp_path):
    """A cluster's job of two ranks gets the launcher's warning: it saves, the launcher queues it again, it is the same
    run to the last bit."""
    overrides = [*SMALL, f"data.root={digits}", "launch.ranks=2", "output_dir=sweep"]
    process = start("train.py", "--multirun", "hydra/launcher=submitit_local", *overrides, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (log := list(tmp_path.glob("sweep/*/metrics.jsonl"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    (job,) = (path for path in (tmp_path / "sweep" / ".submitit").iterdir() if path.name.isdigit())
    (task,) = (int(pid) for pid in os.popen(f"pgrep -P {job.name}").read().split())
    os.kill(task, signal.SIGUSR2)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    told = "".join(path.read_text() for path in job.glob("*.out"))
    assert "interrupted; the same command continues" in told
    assert f"Requeued job {job.name}" in told + "".join(path.read_text() for path in job.glob("*.err"))
    assert_same_run(uncut(2), log[0].parent)


def test_what_slurm_is_asked_for(digits, tmp_path):
    """The batch script that `hydra/launcher=submitit_slurm` hands to sbatch: a warning by SIGUSR2 in time, the log
    continued, a task that starts its own ranks."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    lines = ("#!/bin/sh", "for last; do :; done", f'cp "$last" "{tmp_path}/script"', "echo Submitted batch job 42")
    sbatch.write_text("\n".join(lines) + "\n")
    for program in (sbatch, shutil.copy(sbatch, sbatch.with_name("srun"))):
        program.chmod(0o755)
    overrides = [*SMALL, f"data.root={digits}", "output_dir=sweep", "hydra.launcher.gpus_per_node=8"]
    command = ("train.py", "--multirun", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60", *overrides)
    refused = run_process(*command, cwd=tmp_path, code=1)
    assert "SlurmLauncher gave up" in refused.stderr and "Traceback" not in refused.stderr
    path = {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
    process = start(*command, cwd=tmp_path, variables=path)
    script, deadline = tmp_path / "script", time.monotonic() + 60
    while not script.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()  # it waits for the job
    _, err = process.communicate(timeout=30)
    assert script.exists(), err
    text = script.read_text()
    for line in ("--signal=USR2@", "--gpus-per-node=8", "--ntasks-per-node=1", "--open-mode=append", "--time=60"):
        assert f"#SBATCH {line}" in text, text
    assert re.search(r"srun .*submitit\.core\._submit", text)
