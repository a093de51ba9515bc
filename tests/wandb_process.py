"""wandb's mirror in a process of its own, as a run has it."""

import os
import subprocess
import sys
from pathlib import Path

PROLOGUE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from cotnet.reporting import wandb_logger, wandb_session
from cotnet import records
from cotnet.reporting.wandb_logger import WandbLogger
ready = wandb_logger.READY_SECONDS
wandb_logger.READY_SECONDS = 30.0  # a busy machine may need more than a run would wait
folder = Path(sys.argv[1])
unset = dict.fromkeys(("entity", "notes", "job_type", "watch"))
unset |= dict.fromkeys(("artifacts", "save_code", "system_metrics"), False)
logger = WandbLogger(project="cotnet", group="g", tags=("a", "b"), mode=sys.argv[2], **unset)

def write(record):
    records.append(folder / "metrics.jsonl", record)
    logger.log(record)

def core():
    return int(subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True).stdout)
"""

REPORTS = """
import torch
from cotnet.engine.optimizer import MovingAverage
from cotnet.reporting.run_reports import RunReports
from cotnet.engine.state import State

def reports(step, run_id=""):
    "What rank 0 writes about a run that is taken up at `step`, as train.py has it."
    model = torch.nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = State(model=model, ema=MovingAverage(model, 0.0), optimizer=sgd, scaler=scaler, step=step, run_id=run_id)
    run = {"epochs": 9, "max_steps": None, "classes": 10, "steps_per_epoch": 10}
    shown = {"config": {}, "environment": {"step": step}}
    made = RunReports(folder, logger, state, **run, **shown, terminal=False, page=lambda folder: None)
    made.epoch(state)
    made.status("running", state)
    return made, state

def row(step, loss=2.5):
    speed = {"train/images_per_second": 100.0, "train/data_wait": 0.5, "train/grad_norm": float("nan")}
    return {"step": step, "epoch": step / 10, "train/loss": loss, "train/lr": 0.1} | speed

def validated(step, top1):
    figures = {"val/top1": top1, "val/top5": 90.0, "val/loss": 2.0, "val/images": 50}
    return {"step": step, "epoch": step / 10} | figures
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
