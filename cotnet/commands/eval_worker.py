"""What one rank of an evaluation does: build the model once, then evaluate each set at each size."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from cotnet import parts
from cotnet.commands.eval_model import data_settings
from cotnet.commands.eval_sets import read_sets
from cotnet.config.compose import Config
from cotnet.engine.compilation import compiled
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision
from cotnet.engine.signals import StopRequest
from cotnet.evaluation import speed
from cotnet.evaluation.certificate import paths_to_pixels
from cotnet.evaluation.predictions import Predictions
from cotnet.evaluation.run import Tolerant, predict
from cotnet.evaluation.suites import EvaluationSet, sample
from cotnet.models.fusing import fuse
from cotnet.models.weights import from_bytes
from cotnet.reporting.terminal import evaluation_bar
from cotnet.settings import DataSettings
from data.sets.image_set import ImageSet


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One evaluation: a set at a size, its folder, and what its figures depend on."""

    set: str
    size: int
    folder: str
    inputs: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every rank gets: plain values, so that it can be sent to a new process."""

    config: Config
    leaves: list[Leaf]
    weights: bytes
    classes: tuple[str, ...] | None
    average: int | None


@dataclass(kw_only=True)
class Found:
    """The result of one leaf on rank 0."""

    predictions: Predictions
    missing: dict[str, str]
    figures: dict[str, Any]  # of speed and cost
    chosen: EvaluationSet
    other_paths: dict[str, Predictions]  # of the certificate


def measure(job: Job, ranks: Ranks, stop: StopRequest) -> Iterator[tuple[Leaf, Found | None]]:
    """The result of each leaf, None on other ranks than the first; collective."""
    config = job.config
    data = data_settings(config)
    precision = Precision(name=config["precision"], device=ranks.device, channels_last=config["channels_last"])
    precision.set_up_process()
    model = parts.build_backbone({key: value for key, value in config["backbone"].items() if key != "weights"})
    from_bytes(model, job.weights)
    model = precision.to_device(model)
    if job.average:
        estimate_batch_norm(model, config, data, precision, images=job.average)
    model = (fuse(model) if config["fuse"] else model).eval()
    cost = {size: speed.cost(model, size) for size in {leaf.size for leaf in job.leaves} if ranks.first}
    called = compiled(model) if config["compile"] else model
    sets = {one.name: one for one in read_sets(config, job.classes)}
    for leaf in job.leaves:
        chosen = sets[leaf.set]
        sized = dataclasses.replace(data, eval_size=leaf.size, crop_ratio=data.crop_ratio if chosen.resize else 1.0)
        found = Pass(
            model=called, chosen=chosen, config=config, data=sized, precision=precision, ranks=ranks, stop=stop
        ).found()
        if found is not None:
            found.figures |= cost[leaf.size] | speed.latency(called, precision, leaf.size)
            found.figures["peak_memory_mib"] = speed.peak_memory_mib(ranks.device)
        yield leaf, found


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One model over one set at one size."""

    model: nn.Module
    chosen: EvaluationSet
    config: Config
    data: DataSettings
    precision: Precision
    ranks: Ranks
    stop: StopRequest

    def through(self, make: Any) -> tuple[Predictions, dict[str, str]] | None:
        """The predictions and missing files with a loader of `make(images)`, None on other ranks than the first."""
        images = self.chosen.images
        loader = Tolerant(make, images)
        try:
            with evaluation_bar(len(images.files), enabled=self.ranks.first and sys.stdout.isatty()) as advance:
                return predict(
                    self.model,
                    self.chosen,
                    loader,
                    missing=loader.missing,
                    ranks=self.ranks,
                    classes=self.config["backbone"]["num_classes"],
                    flip=self.data.eval_flip,
                    prepare=parts.evaluation_transform(self.data, self.precision),
                    precision=self.precision,
                    stop=lambda: self.stop.received,
                    advance=advance,
                )
        finally:
            loader.close()

    def own_loader(self, images: ImageSet) -> Any:
        return parts.evaluation_loader(self.config, self.data, images, self.ranks, border=self.chosen.border)

    def found(self) -> Found | None:
        """Everything that is measured, on rank 0."""
        started = time.perf_counter()
        result = self.through(self.own_loader)
        seconds = time.perf_counter() - started
        ways = paths_to_pixels(self.ranks, self.data, self.chosen.border) if self.config["certificate"] else {}
        others = {name: self.through(make) for name, make in ways.items()}
        if result is None:
            return None
        return Found(
            predictions=result[0],
            missing=result[1],
            figures={"images_per_second": len(self.chosen.images.files) / seconds},
            chosen=self.chosen,
            other_paths={name: other[0] for name, other in others.items() if other is not None},
        )


@torch.no_grad()
def estimate_batch_norm(
    model: nn.Module, config: Config, data: DataSettings, precision: Precision, *, images: int
) -> None:
    """New BatchNorm statistics over training images in the evaluation's crop; every rank sees them all, so the result
    is the same on any number of ranks."""
    few = sample(parts.read_data(data)[0], images)
    alone = Ranks(rank=0, world_size=1, device=precision.device)
    loader = parts.evaluation_loader(config, data, few, alone)
    prepare = parts.evaluation_transform(data, precision)
    try:
        batches = (
            prepare(batch.images[batch.indices >= 0]).to(memory_format=precision.layout) for batch in loader.batches(0)
        )
        with precision.autocast():
            update_bn(batches, model)
    finally:
        loader.close()
