"""What every test shares: one thread per process (tests run side by side); a GPU for `pytest -m gpu` alone.

Other tests see no GPU, so they are the same on machines with any number of them.
"""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from programs import SMALL, make_digits, once, run, wants_gpu

if "PYTEST_XDIST_WORKER" not in os.environ and not wants_gpu(sys.argv):  # a worker inherits its parent's choice
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if not torch.cuda.is_available():
    # Kernels run on the CPU. Read when triton is first imported, which another folder's conftest may bring about.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background starts deaf to it
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and pytest -m gpu"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The folder that all test processes of this session see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def digits(shared):
    return once(shared, "some-digits", lambda folder: make_digits(folder, train=9, val=5))


@pytest.fixture(scope="session")
def uncut(shared, digits):
    """Runs never interrupted, by their number of ranks."""

    def folder(ranks: int) -> Path:
        given = [*SMALL, f"data.root={digits}", f"launch.ranks={ranks}", "output_dir=run"]
        given += ["logger=wandb", "logger.artifacts=true", "logger.notes=uncut"]
        return once(shared, f"uncut-{ranks}", lambda folder: run("train.py", *given, cwd=folder)) / "run"

    return folder
