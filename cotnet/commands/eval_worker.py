"""What one rank of an evaluation does: build the model once, then evaluate each set at each size."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from cotnet import image_parts, parts
from cotnet.commands.eval_exported import costs
from cotnet.commands.eval_model import data_settings
from cotnet.commands.eval_sets import read_sets
from cotnet.config.compose import Config
from cotnet.engine.compilation import compiled_or_not
from cotnet.engine.determinism import set_algorithms
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision, is_channels_last
from cotnet.engine.signals import StopRequest
from cotnet.evaluation import speed
from cotnet.evaluation.certificate import paths_to_pixels
from cotnet.evaluation.predictions import Predictions
from cotnet.evaluation.run import Tolerant, predict
from cotnet.evaluation.suites import EvaluationSet, sample
from cotnet.export.runtime import ExportedModel, load_exported
from cotnet.models.contextual import operator_line
from cotnet.models.fusing import fuse
from cotnet.models.weights import from_bytes
from cotnet.reporting.environment import device_name
from cotnet.reporting.terminal import evaluation_bar, say
from cotnet.settings import DataSettings
from data.loading.plan import EvaluationPlan
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
    model: nn.Module  # not compiled
    data: DataSettings  # at the leaf's size

    @property
    def labelled(self) -> bool:
        return self.chosen.label_sets is not None or bool((self.predictions.labels >= 0).all())


def measure(job: Job, ranks: Ranks, stop: StopRequest) -> Iterator[tuple[Leaf, Found | None]]:
    """The result of each leaf, None on other ranks than the first; collective."""
    config = job.config
    data = data_settings(config)
    last = is_channels_last(config["channels_last"], ranks.device)
    precision = Precision(name=config["precision"], device=ranks.device, channels_last=last)
    precision.set_up_process()
    set_algorithms(ranks.device, deterministic=True)
    model = precision.to_device(_built(job))
    if job.average:
        estimate_batch_norm(model, config, data, precision, images=job.average)
    model = (fuse(model) if config["fuse"] else model).eval()
    cost = {size: _cost(model, size) for size in {leaf.size for leaf in job.leaves} if ranks.first}
    latency: dict[int, dict[str, float]] = {}
    sets = {one.name: one for one in read_sets(config, job.classes)}
    batches = {name: min(data.eval_batch_size, len(one.images.files)) for name, one in sets.items()}
    shapes = dict.fromkeys((batches[leaf.set], 3, leaf.size, leaf.size) for leaf in job.leaves)
    called = called_model(model, config, precision, ranks, shapes=[*shapes])
    for name, leaves in itertools.groupby(job.leaves, key=lambda leaf: leaf.set):
        one_pass, chosen = {leaf.size: leaf for leaf in leaves}, sets[name]
        sized = dataclasses.replace(data, crop_ratio=data.crop_ratio if chosen.resize else 1.0)
        found = Pass(
            model=called,
            eager=model,
            chosen=chosen,
            config=config,
            data=sized,
            sizes=tuple(one_pass),
            precision=precision,
            ranks=ranks,
            stop=stop,
        ).found()
        for size, leaf in one_pass.items():
            if found is not None:
                latency[size] = latency.get(size) or speed.latency(called, precision, size)
                found[size].figures |= cost[size] | latency[size] | {"device": device_name(ranks.device)}
                found[size].figures["peak_memory_mib"] = speed.peak_memory_mib(ranks.device)
            yield leaf, None if found is None else found[size]


def _built(job: Job) -> nn.Module:
    """The model with its weights, or the exported file as one."""
    if job.config.get("exported"):
        return load_exported(job.config["checkpoint"])
    backbone = {key: value for key, value in job.config["backbone"].items() if key != "weights"}
    model = parts.build_backbone(backbone)
    from_bytes(model, job.weights)
    return model


def _cost(model: nn.Module, size: int) -> dict[str, Any]:
    return costs(model) if isinstance(model, ExportedModel) else speed.cost(model, size)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One model over one set: each file is read once for all sizes."""

    model: nn.Module
    eager: nn.Module  # the same, not compiled
    chosen: EvaluationSet
    config: Config
    data: DataSettings
    sizes: tuple[int, ...]
    precision: Precision
    ranks: Ranks
    stop: StopRequest

    def through(self, make: Any, sizes: tuple[int, ...]) -> tuple[dict[int, Predictions], dict[str, str]] | None:
        """The predictions by size and missing files with a loader of `make(images)`, None on other ranks than the
        first."""
        images = self.chosen.images
        loader = Tolerant(make, images)
        try:
            with evaluation_bar(len(images.files), enabled=self.ranks.first and sys.stdout.isatty()) as advance:
                return predict(
                    self.model,
                    self.chosen,
                    loader,
                    sizes=sizes,
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
        data, more = dataclasses.replace(self.data, eval_size=self.sizes[0]), self.sizes[1:]
        border = self.chosen.border
        return parts.evaluation_loader(self.config, data, images, self.ranks, border=border, more_sizes=more)

    def other_ways(self, size: int) -> dict[str, Predictions]:
        """The predictions through each way to the pixels, for the certificate."""
        data = dataclasses.replace(self.data, eval_size=size)

        def plan(images: ImageSet) -> EvaluationPlan:
            return parts.evaluation_plan(data, images, self.ranks, border=self.chosen.border)

        makers = paths_to_pixels(plan, self.ranks.device, data.eval_interpolation)
        results = {name: self.through(make, (size,)) for name, make in makers.items()}
        return {name: result[0][size] for name, result in results.items() if result is not None}

    def found(self) -> dict[int, Found] | None:
        """Everything that is measured, by size, on rank 0."""
        started = time.perf_counter()
        result = self.through(self.own_loader, self.sizes)
        seconds = time.perf_counter() - started
        others = {size: self.other_ways(size) if self.config["certificate"] else {} for size in self.sizes}
        if result is None:
            return None
        rate = len(self.chosen.images.files) / seconds
        return {
            size: Found(
                predictions=result[0][size],
                missing=result[1],
                figures={"images_per_second": rate},
                chosen=self.chosen,
                other_paths=others[size],
                model=self.eager,
                data=dataclasses.replace(self.data, eval_size=size),
            )
            for size in self.sizes
        }


def called_model(
    model: nn.Module, config: Config, precision: Precision, ranks: Ranks, *, shapes: Sequence[tuple[int, ...]]
) -> nn.Module:
    """The model as an evaluation calls it on images (B, 3, S, S) of these shapes, compiled for each if `compile` says
    so; collective."""

    @torch.inference_mode()
    def trial(net: nn.Module) -> None:
        for shape in shapes:
            zeros = torch.zeros(shape, device=ranks.device, dtype=precision.parameters)
            with precision.autocast():
                net(zeros.to(memory_format=precision.layout))

    how: dict[str, Any] = {"key": "compile", "device": ranks.device, "any_rank": ranks.any}
    called, line = compiled_or_not(model, config["compile"], trial=trial, **how)
    for told in filter(None, (operator_line(model, ranks.device), line)):
        if ranks.first:
            say(told)
    return called


@torch.no_grad()
def estimate_batch_norm(
    model: nn.Module, config: Config, data: DataSettings, precision: Precision, *, images: int
) -> None:
    """New BatchNorm statistics over training images in the evaluation's crop; every rank sees them all, so the result
    is the same on any number of ranks."""
    few = sample(image_parts.read_data(data)[0], images)
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
