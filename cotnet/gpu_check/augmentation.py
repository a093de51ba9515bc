"""The augmentation on the device: its kernels, and whether it runs beside the training step."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Final

import torch

from cotnet.benchmarks import common
from cotnet.benchmarks.roofline import OperatorTrace
from cotnet.engine.side_stream import beside_the_step
from cotnet.engine.state import State
from cotnet.engine.step import TrainContext, train_step
from cotnet.gpu_check.exactness import SMALL_LOOP, augmented
from cotnet.gpu_check.stage import Bench, Claim

LAUNCHES: Final = 150  # of RandAugment with normalising, for a batch of 80


def augmentation(bench: Bench) -> Iterator[Claim]:
    """Launches and time of RandAugment on a batch of 80; steps with it in line and beside them."""
    large = ("backbone=cotnet50", "train.batch_size=80", "train.precision=bf16")
    policy_alone = ("augmentation.mixup=0", "augmentation.cutmix=0", "augmentation.erasing=0")
    given, steps, turns = (large, 10, 3) if bench.gpu else (SMALL_LOOP, 2, 1)
    with augmented([*given, "train.compile=false", *policy_alone], bench, 1) as (context, _):
        yield launches(context, bench)
    with augmented(given, bench, steps) as (context, state):
        beside = replace(context, data=beside_the_step(context.data, bench.device))
        seconds_of_a_step(context, state)
        in_line, on_its_own = (min(seconds_of_a_step(one, state) for _ in range(turns)) for one in (context, beside))
    figure = f"{1000 * on_its_own:.1f} ms a step, in line {1000 * in_line:.1f} ms"
    claim = "augmentation on a stream of its own does not make a step longer"
    yield Claim(claim, figure, bench.on_gpu(on_its_own <= 1.02 * in_line))


def launches(context: TrainContext, bench: Bench) -> Claim:
    """Kernels and copies of one batch on a GPU, operators on a CPU; and its time."""
    images, targets, indices = next(context.data.loader.batches(0))
    context.data.transform(images, targets, indices, 0)  # kernels are built, tables are there
    times = [
        common.seconds(lambda: context.data.transform(images, targets, indices, 1), bench.device) for _ in range(10)
    ]
    if bench.gpu:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            context.data.transform(images, targets, indices, 1)
            common.now(bench.device)
        count = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    else:
        with OperatorTrace() as trace:
            context.data.transform(images, targets, indices, 1)
        count = trace.launches
    figure = f"{count} launches, {1000 * median(times):.1f} ms"
    claim = f"RandAugment and normalising of {len(images)} images take at most {LAUNCHES} launches"
    return Claim(claim, figure, bench.on_gpu(count <= LAUNCHES))


def seconds_of_a_step(context: TrainContext, state: State) -> float:
    """Of an epoch's steps in a row."""
    started, steps = common.now(context.ranks.device), 0
    for batch in context.data.loader.batches(0):
        train_step(context, state, *batch)
        steps += 1
    return (common.now(context.ranks.device) - started) / steps
