"""What limits a training run here: `python -m cotnet.benchmarks.bottleneck [key=value] ... [--seconds N]`.

Composes the configuration as train.py does and measures each part alone on this machine and image set: reading files,
the loader without and with the augmentation, and the model on a batch that is already on the device. Names the slowest
part, and says which loader, threads and batch would be faster. It measures one rank; several ranks on one machine share
its cores, so give loader.threads as cores / ranks.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

import torch

from cotnet import image_parts, parts
from cotnet.benchmarks import common
from cotnet.commands.checks import decodes_on_gpu
from cotnet.commands.program import one_line
from cotnet.commands.run_parts import new_state
from cotnet.commands.train_classifier import backbone_of, trained_model
from cotnet.config.compose import Config, compose
from cotnet.engine.determinism import set_algorithms
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import precision_of
from cotnet.errors import InputError, RunError
from data.sets.image_set import ImageSet

LOADERS = ("dali", "torchvision")
ENOUGH = 1.2  # a loader alone must be this much faster than the model, for what both share


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Images per second of each part alone, as configured, and of alternatives by (loader, threads) and by batch.
    `overlap`: whether the model has a device of its own; on the CPU it shares the cores with the loader."""

    reading: float
    decoding: float
    loader: float
    model: float
    loaders: dict[tuple[str, int], float]
    batches: dict[int, float]
    overlap: bool
    configured: int  # images per rank and micro-batch
    fits: int  # the same, halved until it fits the memory; `model` is of so many


class PartBench:
    """The parts of one configuration, each measured for `seconds`."""

    def __init__(self, config: Config, seconds: float) -> None:
        self.config, self.seconds, self.device = config, seconds, common.first_device()
        self.settings = parts.settings_of(config)
        self.precision = precision_of(self.settings.train, self.device)
        set_algorithms(self.device, deterministic=self.settings.train.deterministic)
        self.images, _ = image_parts.read_data(self.settings.data)
        self.settings.train.check_batch(1, len(self.images.files))

    def rate(self, step: Callable[[], int]) -> float:
        """Images per second of a step that returns its number of images; the first two calls are not timed."""
        step()
        step()
        images, started = 0, common.now(self.device)
        while (elapsed := common.now(self.device) - started) < self.seconds or not images:
            images += step()
        return images / elapsed

    def loader(self, node: Mapping[str, Any], *, augmented: bool = True) -> float:
        """The rate of the loader with these settings, with or without the augmentation on the device."""
        config = {**self.config, "loader": node}
        ranks = Ranks(rank=0, world_size=1, device=self.device)
        loader, _ = parts.train_loader(config, self.settings, self.images, ranks)
        transform = parts.train_transform(self.config, self.settings, self.precision)
        batches = ((*batch, epoch) for epoch in count() for batch in loader.batches(epoch))

        def step() -> int:
            images, *more = next(batches)
            if augmented:
                transform(images, *more)
            return len(images)

        with closing(loader):
            return self.rate(step)

    def model(self, batch: int) -> float:
        """The rate of forward, backward and optimizer step on noise that is on the device. Format and compilation are
        those of training."""
        gc.collect()  # an earlier model may be in a reference cycle, and would take memory that this batch needs
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        state = new_state(self.config, self.settings, self.precision, lambda: backbone_of(self.config, self.settings))
        size = self.settings.data.image_size
        alone = Ranks(rank=0, world_size=1, device=self.device)
        model = trained_model(self.settings, state, alone, images=batch, sizes=[size])
        images = torch.randn(batch, 3, size, size, device=self.device)
        images = images.to(self.precision.parameters, memory_format=self.precision.layout)
        targets = torch.randint(self.settings.data.num_classes, (batch,), device=self.device)
        state.model.train()

        def step() -> int:
            common.bare_step(model, state.optimizer, images, targets, precision=self.precision, scaler=state.scaler)
            return batch

        return self.rate(step)

    def measure(self) -> Rates:
        """Everything, in turn."""
        threads, cores = self.config["loader"]["threads"], len(os.sched_getaffinity(0))
        nodes = {name: compose("train", [f"loader={name}", "data.root=."])["loader"] for name in LOADERS}
        own = next(name for name, node in nodes.items() if node["_target_"] == self.config["loader"]["_target_"])
        nodes[own] = self.config["loader"]
        common.progress("reading, decoding")
        reading = reading_rate(self.images, threads or 1, self.seconds)
        decoding, loader = self.loader(nodes[own], augmented=False), self.loader(nodes[own])
        loaders = {(own, threads): loader}
        for name, number in product(LOADERS, sorted({max(cores // 2, 1), cores})):
            if (name, number) not in loaders:
                common.progress(f"{name} with {number} threads")
                loaders[name, number] = self.loader({**nodes[name], "threads": number})
        given = self.settings.train.batch_size // self.settings.train.accumulation
        fits, rate = largest_that_fits(self.model, given)
        batches = {fits: rate}
        for batch in (fits // 2, 2 * fits):
            common.progress(f"model with batch {batch}")
            if 2 <= batch <= len(self.images.files) and batch not in batches:
                with suppress(torch.OutOfMemoryError):
                    batches[batch] = self.model(batch)
        return Rates(
            reading=reading,
            decoding=decoding,
            loader=loader,
            model=rate,
            configured=given,
            fits=fits,
            loaders=loaders,
            batches=batches,
            overlap=self.device.type == "cuda",
        )


def largest_that_fits(measure: Callable[[int], float], batch: int) -> tuple[int, float]:
    """The batch, halved until `measure` does not run out of the GPU's memory, and what it returns.

    Raises:
        RunError: not even two images fit.
    """
    while batch >= 2:
        try:
            return batch, measure(batch)
        except torch.OutOfMemoryError:
            batch //= 2
    raise RunError("not even 2 images fit the GPU's memory; use a smaller backbone or data.image_size")


def reading_rate(images: ImageSet, threads: int, seconds: float) -> float:
    """Files read per second, each file once at most: a second read would come from the system's cache."""
    with ThreadPoolExecutor(threads) as pool:
        done, started = 0, time.perf_counter()
        for first in range(0, len(images.files), 16 * threads):
            paths = [images.path(index) for index in range(first, min(first + 16 * threads, len(images.files)))]
            done += sum(1 for _ in pool.map(Path.read_bytes, paths))
            if time.perf_counter() - started > seconds:
                break
        return done / (time.perf_counter() - started)


def verdict(rates: Rates) -> list[str]:
    """The limit and what would be faster, one line each."""
    together = min(rates.loader, rates.model) if rates.overlap else 1 / (1 / rates.loader + 1 / rates.model)
    model_limits = rates.model * ENOUGH <= rates.loader
    if model_limits:
        line = f"the model is the limit: the loader alone is {rates.loader / rates.model:.1f} times as fast"
    elif rates.loader * ENOUGH < min(rates.reading, rates.decoding):
        line = "the augmentation is the limit: decoding alone is faster; a lighter augmentation or a GPU would help"
    elif rates.reading < rates.decoding * ENOUGH:
        line = "reading is the limit: put the set on a faster disk, or store it smaller (data.prepare --resize)"
    else:
        more = "more loader.threads, a GPU that decodes, or smaller files (data.prepare --resize)"
        line = f"decoding is the limit: {more}"
    lines = [f"expected: about {together:,.0f} images/s; {line}"]
    if rates.fits < rates.configured:
        parts = -(-rates.configured // rates.fits)
        remedy = f"set train.accumulation to {parts} times its value, or lower train.batch_size"
        lines.append(f"{rates.configured} images per rank and step do not fit the memory, {rates.fits} do: {remedy}")
    (name, threads), best = max(rates.loaders.items(), key=lambda item: item[1])
    if best > 1.1 * rates.loader and not model_limits:
        lines.append(f"better: loader={name} loader.threads={threads} ({best:,.0f} instead of {rates.loader:,.0f})")
    batch, faster = max(rates.batches.items(), key=lambda item: item[1])
    if faster > 1.1 * rates.model:
        lines.append(f"better: {batch} images per rank and step ({faster:,.0f} instead of {rates.model:,.0f} images/s)")
    return lines if len(lines) > 1 else [*lines, "loader, threads and batch are as good as anything that was tried"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and advise; exits with 2 and one line for wrong settings or images."""
    parser = common.options("bottleneck", "What limits training.", plot=False)
    parser.add_argument("overrides", nargs="*", help="as for train.py: experiment=NAME, data.root=DIR, ...")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement (%(default)s)")
    given = parser.parse_intermixed_args(arguments)
    with one_line(keep=False):
        if given.seconds <= 0:
            raise InputError(f"--seconds {given.seconds:g} must be positive")
        bench = PartBench(compose("train", given.overrides), given.seconds)
        rates = bench.measure()
    rows = [(name, "as configured", getattr(rates, name)) for name in ("reading", "decoding", "loader", "model")]
    rows += [("loader", f"{name}, {threads} threads", rate) for (name, threads), rate in rates.loaders.items()]
    rows += [("model", f"batch {batch}", rate) for batch, rate in sorted(rates.batches.items())]
    keys = ("name", "setting", "images_per_second")
    common.finish([dict(zip(keys, row, strict=True)) for row in rows], given.json)
    form = f"precision {bench.precision.name}{', channels_last' if bench.precision.channels_last else ''}"
    decoded = "GPU" if decodes_on_gpu(bench.config) else "CPU"
    where = f"{bench.device}, {form}; images are decoded on the {decoded}"
    sys.stdout.write("\n".join([f"device: {where}", *verdict(rates)]) + "\n")


if __name__ == "__main__":
    main()
