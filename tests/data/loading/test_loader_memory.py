from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from loaders import TRAIN
from photographs import photograph

from cotnet.engine.precision import keep_freed_memory
from data.loading.dali import DaliLoader
from data.loading.torchvision import TorchvisionLoader
from data.sets.read import read_split


def memory():
    """MiB of this process and its children without files, whose pages come and go."""
    tasks = Path("/proc/self/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    lines = [
        line for process in ("self", *children) for line in Path(f"/proc/{process}/status").read_text().splitlines()
    ]
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem", "VmSwap"))) / 1024


def memory_after_epochs(loader, root, epochs):
    keep_freed_memory(torch.device("cpu"))  # as every run does
    plan = replace(TRAIN, samples=36, batch_size=18, image_size=224)  # batches of megabytes: old ones show if kept
    image_set = read_split(root, "train")
    opened = loader(image_set, plan, output_device=torch.device("cpu"), interpolation="bilinear", threads=1, prefetch=2)
    after = []
    for epoch in range(epochs):
        for _ in opened.batches(epoch):
            pass
        after.append(memory())
    opened.close()
    return after


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """36 files of six photographs, and a process that no other test has used; its imports take seconds."""
    root = tmp_path_factory.mktemp("photographs")
    folder = root / "train" / "photographs"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = [photograph(rng, 250, 188) for _ in range(6)]
    for number in range(36):
        pictures[number % 6].save(folder / f"{number}.jpg", quality=90)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        yield root, process


@pytest.mark.slow
@pytest.mark.parametrize("loader", [pytest.param(TorchvisionLoader, marks=pytest.mark.long), DaliLoader])
def test_memory_stays_flat_over_20_epochs(loader, fresh):
    root, process = fresh
    after = process.submit(memory_after_epochs, loader, root, 20).result()
    assert min(after[15:]) - max(after[3:6]) < 20, after  # one batch kept per batch would be 52
