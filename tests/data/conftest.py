"""What the tests of the loaders open."""

from dataclasses import replace

import pytest
from loaders import CPU
from photographs import make_imagenet

from data.loading.dali import DaliLoader
from data.sets.read import read_split


@pytest.fixture(scope="session")
def train_set(tmp_path_factory):
    """32 photographs in four classes."""
    return read_split(make_imagenet(tmp_path_factory.mktemp("imagenet"), train=8, val=1), "train")


@pytest.fixture
def open_loader():
    """A loader that is closed again: open_loader(cls, image_set, plan, ...). threads: DALI's one or torchvision's none,
    which saves starting a process, unless given. decode: the setting `device`."""
    opened = []

    def make(loader, image_set, plan, *, device=CPU, interpolation="bilinear", threads=None, prefetch=2, decode="auto"):
        plan = replace(plan, samples=len(image_set.files))
        threads = int(loader is DaliLoader) if threads is None else threads
        settings = {"output_device": device, "interpolation": interpolation, "threads": threads, "prefetch": prefetch}
        settings["device"] = decode
        opened.append(loader(image_set, plan, **settings))
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()
