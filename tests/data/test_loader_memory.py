import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loaders import TRAIN
from photographs import photograph

from cotnet.engine.allocator import keep_freed_memory
from data.dali import DaliLoader
from data.samples import read_split
from data.torchvision import TorchvisionLoader


def resident():
    """MiB of this process and its children."""
    tasks = Path("/proc/self/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in ("self", *children))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("loader", [DaliLoader, TorchvisionLoader])
def test_memory_stays_flat_over_20_epochs(loader, tmp_path):
    folder = tmp_path / "train" / "photographs"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(36):
        photograph(rng, 500, 375).save(folder / f"{number}.jpg", quality=90)
    keep_freed_memory(torch.device("cpu"))  # as every run does
    plan = replace(TRAIN, samples=36, batch_size=18, image_size=224)  # megabytes: what keeps old batches shows
    image_set = read_split(tmp_path, "train")
    opened = loader(image_set, plan, device=torch.device("cpu"), interpolation="bilinear", threads=1, prefetch=2)
    after = []
    for epoch in range(20):
        for _ in opened.batches(epoch):
            pass
        after.append(resident())
    opened.close()
    assert max(after[10:]) - max(after[3:6]) < 12, after
