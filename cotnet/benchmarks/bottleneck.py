"""What limits a training run here: `python -m cotnet.benchmarks.bottleneck [key=value] ... [--seconds N]`.

Composes the configuration as train.py does, then measures each part alone on this machine and set: reading files,
reading and decoding them (the loader: crop, resize and flip included), that with the augmentation, and the model on a
batch that is already there. Names the slowest, and says which loader, threads and batch would be better. One rank; with
several on one machine the cores are shared, so give loader.threads as cores / ranks.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cotnet import parts
from cotnet.benchmarks import meters, report
from cotnet.commands.program import one_line
from cotnet.config.compose import Config, compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.optimizer import parameter_groups
from cotnet.engine.precision import Precision, choose_precision
from cotnet.errors import InputError
from data.sets.image_set import ImageSet

LOADERS = {"dali": "data.loading.dali.DaliLoader", "torchvision": "data.loading.torchvision.TorchvisionLoader"}
ENOUGH = 1.2  # a loader alone must be this much faster than the model, for what both share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Images per second of each part alone, as configured, and of the alternatives by (loader, threads) and batch.

    overlap: whether the model has a device of its own; on the CPU it shares the cores with the loader.
    """

    reading: float
    decoding: float
    loader: float
    model: float
    loaders: dict[tuple[str, int], float]
    batches: dict[int, float]
    overlap: bool


class Bench:
    """The parts of one configuration and how long each is measured."""

    def __init__(self, config: Config, seconds: float) -> None:
        self.config, self.seconds = config, seconds
        self.settings = parts.settings_of(config)
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.ranks = Ranks(rank=0, world_size=1, device=self.device)
        precision = choose_precision(self.settings.train.precision, self.device)
        self.precision = Precision(name=precision, device=self.device)
        self.images, _ = parts.read_data(self.settings.data)
        self.settings.train.check_batch(1, len(self.images.files))

    def rate(self, steps: Iterator[int]) -> float:
        """Images per second of steps that give their number of images; the first two steps are not timed."""
        for _ in range(2):
            next(steps)
        images, started = 0, meters.now(self.device)
        while (elapsed := meters.now(self.device) - started) < self.seconds or not images:
            images += next(steps)
        return images / elapsed

    def loader(self, *, augmented: bool, name: str | None = None, threads: int | None = None) -> float:
        """The loader's rate, with what the augmentation does on the device or without."""
        node = dict(self.config["loader"])
        node |= {"_target_": LOADERS[name]} if name else {}
        node |= {"threads": threads} if threads else {}
        loader, _ = parts.train_loader({**self.config, "loader": node}, self.settings, self.images, self.ranks)
        transform = parts.train_transform(self.config, self.settings, self.precision)

        def steps() -> Iterator[int]:
            epoch = 0
            while True:
                for images, targets, indices in loader.batches(epoch):
                    if augmented:
                        transform(images, targets, indices, epoch)
                    yield len(images)
                epoch += 1

        with closing(loader):
            return self.rate(steps())

    def model(self, batch: int) -> float:
        """Forward, backward and optimizer step on a batch of noise that is on the device."""
        data = self.settings.data
        model = parts.build_backbone(self.config["backbone"]).to(self.device, self.precision.parameters).train()
        groups = parameter_groups(model, self.config["optimizer"].get("weight_decay", 0.0))
        optimizer = parts.build_optimizer(self.config, groups)
        images = torch.randn(
            batch, 3, data.image_size, data.image_size, device=self.device, dtype=self.precision.parameters
        )
        targets = torch.randint(data.num_classes, (batch,), device=self.device)
        criterion = nn.CrossEntropyLoss()

        def steps() -> Iterator[int]:
            while True:
                with self.precision.autocast():
                    logits = model(images)
                criterion(logits.to(images.dtype), targets).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                yield batch

        return self.rate(steps())

    def measure(self, say: Callable[[str], None]) -> Rates:
        """Everything, in turn."""
        micro_batch = self.settings.train.batch_size // self.settings.train.accumulation
        own = next(name for name, target in LOADERS.items() if target == self.config["loader"]["_target_"])
        say("reading")
        found = reading_rate(self.images, self.config["loader"]["threads"] or 1, self.seconds)
        say("decoding")
        decoding = self.loader(augmented=False)
        say("loader")
        full = self.loader(augmented=True)
        loaders = {(own, self.config["loader"]["threads"]): full}
        for name in LOADERS:
            for threads in thread_counts(len(os.sched_getaffinity(0))):
                if (name, threads) not in loaders:
                    say(f"{name} with {threads} threads")
                    loaders[name, threads] = self.loader(augmented=True, name=name, threads=threads)
        say("model")
        batches = {micro_batch: self.model(micro_batch)}
        for batch in (micro_batch // 2, 2 * micro_batch):
            say(f"model with batch {batch}")
            rate = self._fitting(batch)
            if rate is not None:
                batches[batch] = rate
        return Rates(
            reading=found,
            decoding=decoding,
            loader=full,
            model=batches[micro_batch],
            loaders=loaders,
            batches=batches,
            overlap=self.device.type == "cuda",
        )

    def _fitting(self, batch: int) -> float | None:
        if not 2 <= batch <= len(self.images.files):
            return None
        try:
            return self.model(batch)
        except torch.cuda.OutOfMemoryError:
            return None


def reading_rate(images: ImageSet, threads: int, seconds: float) -> float:
    """Files read per second by so many threads, each file once at most: a second time the system's cache answers."""
    with ThreadPoolExecutor(threads) as pool:
        done, started = 0, time.perf_counter()
        for first in range(0, len(images.files), 16 * threads):
            paths = [images.path(index) for index in range(first, min(first + 16 * threads, len(images.files)))]
            done += sum(1 for _ in pool.map(Path.read_bytes, paths))
            if time.perf_counter() - started > seconds:
                break
        return done / (time.perf_counter() - started)


def thread_counts(cores: int) -> tuple[int, ...]:
    """The numbers of threads to try."""
    return tuple(sorted({max(cores // 2, 1), cores}))


def verdict(rates: Rates) -> list[str]:
    """The limit and what would be better, one line each."""
    together = min(rates.loader, rates.model) if rates.overlap else 1 / (1 / rates.loader + 1 / rates.model)
    model_limits = rates.model * ENOUGH <= rates.loader
    if model_limits:
        line = f"the model is the limit: the loader alone is {rates.loader / rates.model:.1f} times as fast"
    elif rates.loader * ENOUGH < min(rates.reading, rates.decoding):
        line = "the augmentation is the limit: decoding alone is faster; a lighter augmentation or a GPU would help"
    elif rates.reading < rates.decoding * ENOUGH:
        line = "reading is the limit: put the set on a faster disk, or store it smaller (data.prepare --resize)"
    else:
        line = (
            "decoding is the limit: more loader.threads, a GPU that decodes, or smaller files (data.prepare --resize)"
        )
    lines = [f"expected: about {together:,.0f} images/s; {line}"]
    (name, threads), best = max(rates.loaders.items(), key=lambda item: item[1])
    if best > 1.1 * rates.loader and not model_limits:
        lines.append(f"better: loader={name} loader.threads={threads} ({best:,.0f} instead of {rates.loader:,.0f})")
    batch, faster = max(rates.batches.items(), key=lambda item: item[1])
    if faster > 1.1 * rates.model:
        lines.append(f"better: {batch} images per rank and step ({faster:,.0f} instead of {rates.model:,.0f} images/s)")
    return lines if len(lines) > 1 else [*lines, "loader, threads and batch are as good as anything that was tried"]


def rows_of(rates: Rates) -> list[dict[str, Any]]:
    """The records of the table and of the JSON file."""
    named = {"reading": rates.reading, "decoding": rates.decoding, "loader": rates.loader, "model": rates.model}
    rows = [{"name": name, "setting": "as configured", "images_per_second": rate} for name, rate in named.items()]
    rows += [
        {"name": "loader", "setting": f"{name}, {threads} threads", "images_per_second": rate}
        for (name, threads), rate in rates.loaders.items()
    ]
    rows += [
        {"name": "model", "setting": f"batch {batch}", "images_per_second": rate}
        for batch, rate in sorted(rates.batches.items())
    ]
    return rows


def _progress(part: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{part}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and advise; exits with 2 and one line for wrong settings or images."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.benchmarks.bottleneck", description="What limits training.")
    parser.add_argument("overrides", nargs="*", help="as for train.py: experiment=NAME, data.root=DIR, ...")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement (%(default)s)")
    parser.add_argument("--json", type=report.output_file, help="file for the records")
    given = parser.parse_intermixed_args(arguments)
    with one_line(keep=False):
        if given.seconds <= 0:
            raise InputError(f"--seconds {given.seconds:g} must be positive")
        bench = Bench(compose("train", given.overrides), given.seconds)
        rates = bench.measure(_progress)
        _progress("")
    rows = rows_of(rates)
    report.print_table(rows)
    where = f"{bench.device} (images are decoded there with loader=dali), precision {bench.precision.name}"
    sys.stdout.write("\n".join([f"device: {where}", *verdict(rates)]) + "\n")
    if given.json:
        report.write_json(given.json, rows)


if __name__ == "__main__":
    main()
