"""Exactness: continued runs, repeated steps, gradients against float64 on the CPU, hidden synchronisation."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from cotnet import parts
from cotnet.benchmarks import common
from cotnet.benchmarks.loop import LoopBench, MemoryLoader
from cotnet.benchmarks.nets import build_net
from cotnet.config.compose import compose
from cotnet.engine.determinism import set_algorithms
from cotnet.engine.distributed import join_ranks
from cotnet.engine.precision import Precision
from cotnet.engine.side_stream import beside_the_step
from cotnet.engine.state import State
from cotnet.engine.step import TrainContext, train_step
from cotnet.gpu_check.stage import ROOT, Bench, Claim, run_python

# Largest relative error of a parameter's gradient, ||g - g64|| / ||g64||, over the parameters whose norm is not tiny.
# A CPU has at most 0.026 and 0.38 for CoTNet-50 and ResNet-50; a gradient that is lost has 1.
GRADIENT_BOUNDS: Final = {"fp32": 0.1, "bf16": 0.75}
TINY: Final = 1e-6  # of the largest norm: biases before a norm, whose gradient is zero up to rounding
WARM_UP: Final = 3  # steps, in which kernels are built, memory is taken, and the tables go to the device
SMALL_LOOP: Final = ("backbone=cotnet_small", "data.image_size=32", "train.batch_size=8", "data.num_classes=10")
LAST_NORM: Final = 0.05  # weight of each block's last norm, see `awake`


def resume(bench: Bench) -> Iterator[Claim]:
    """Real runs that are cut and continued, eager and compiled, and with four GPUs on four ranks."""
    if not (ROOT / "datasets" / "digits").is_dir():
        run_python("-m", "data.prepare", "digits", "--out", "datasets/digits", seconds=120)
    kinds: dict[str, list[str]] = {"1 rank, eager": ["--ranks", "1", "--cuts", "4" if bench.gpu else "1"]}
    shared = ["train.precision=bf16", "train.channels_last=true"] if bench.gpu else ["train.epochs=2"]
    if bench.gpu:
        kinds["1 rank, compiled"] = ["--ranks", "1", "--cuts", "2", "train.compile=true"]
    if torch.cuda.device_count() >= 4:
        kinds["4 ranks"] = ["--ranks", "4", "--cuts", "2"]
    for kind, given in kinds.items():
        folder = bench.folder / kind.replace(", ", "-").replace(" ", "-")
        out = run_python(
            *("-m", "cotnet.verify_resume", "--folder", str(folder), *given, *shared), seconds=240 if bench.gpu else 600
        )
        yield Claim(f"a run that is cut continues bit for bit: {kind}", out.strip().splitlines()[-1], passed=True)


def repeated_steps(bench: Bench) -> Iterator[Claim]:
    """The gradients of one step, again and again, as with train.deterministic=true; pvt_tiny for its attention."""
    names, batch, size, times = (("cotnet50", "pvt_tiny"), 32, 224, 20) if bench.gpu else (("cotnet_small",), 4, 32, 3)
    set_algorithms(bench.device, deterministic=True, strict=True)
    for name, last in itertools.product(names, (False, True) if bench.gpu else (False,)):
        precision = Precision(name="bf16" if bench.gpu else "fp32", device=bench.device, channels_last=last)
        first = gradients(name, batch, size, precision=precision)
        differ = 0
        for _ in range(times - 1):
            again = gradients(name, batch, size, precision=precision)
            differ = max(differ, sum(not torch.equal(again[key], first[key]) for key in first))
        figure = f"{differ} of {len(first)} gradients differ over {times} repeats"
        layout = "channels_last" if last else "contiguous"
        yield Claim(f"{name}'s step gives the same bits every time, {precision.name}, {layout}", figure, not differ)


def gradient_errors(bench: Bench) -> Iterator[Claim]:
    """Gradients of whole nets against those of float64 on the CPU."""
    names, batch, size = (("cotnet50", "resnet50"), 8, 96) if bench.gpu else (("cotnet_small",), 4, 32)
    for name in names:
        exact = gradients(name, batch, size, precision=Precision(name="fp64", device=torch.device("cpu")))
        for kind in ("fp32", "bf16"):
            for last in (False, True) if bench.gpu else (False,):
                precision = Precision(name=kind, device=bench.device, channels_last=last)
                precision.set_up_process()
                errors = relative_errors(gradients(name, batch, size, precision=precision), exact)
                worst = sorted(errors, key=lambda key: -errors[key])[:3]
                figure = f"{len(errors)} of {len(exact)}: " + ", ".join(f"{key} {errors[key]:.1e}" for key in worst)
                layout = "channels_last" if last else "contiguous"
                bound = GRADIENT_BOUNDS[kind]
                claim = f"gradients of {name}, {kind}, {layout}: relative errors below {bound:g}, the worst"
                yield Claim(claim, figure, max(errors.values()) < bound)


def gradients(name: str, batch: int, size: int, *, precision: Precision) -> dict[str, Tensor]:
    """Gradients of a training step from seeded weights and noise, by parameter, on the CPU in float64."""
    torch.manual_seed(0)
    model = precision.to_device(awake(build_net(name, size))).train()
    drawn = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, size, size, generator=drawn, dtype=torch.float64).float()
    targets = torch.randint(1000, (batch,), generator=drawn).to(precision.device)
    with precision.autocast():
        logits = model(images.to(precision.device, precision.parameters, memory_format=precision.layout))
    torch.nn.functional.cross_entropy(logits.to(precision.parameters), targets).backward()
    return {key: value.grad.double().cpu() for key, value in model.named_parameters() if value.grad is not None}


def awake(model: nn.Module) -> nn.Module:
    """The model with gradients in every block. CoTNet's last norms start at 0, so that its blocks' branches get none;
    from 1 on, as ResNet's, rounding errors grow from block to block until they hide a wrong gradient."""
    for name, module in model.named_modules():
        if name.endswith(".bn3"):
            nn.init.constant_(module.get_parameter("weight"), LAST_NORM)
    return model


def relative_errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """||g - g64|| / ||g64|| of the parameters whose gradient is not tiny."""
    norms = {key: float(gradient.norm()) for key, gradient in exact.items()}
    large = [key for key, norm in norms.items() if norm > TINY * max(norms.values())]
    return {key: float((found[key] - exact[key]).norm()) / norms[key] for key in large}


def synchronisation(bench: Bench) -> Iterator[Claim]:
    """Ten steps of the loop, with augmentation, while torch reports every operation that makes the host wait."""
    given = ["backbone=cotnet50", "train.batch_size=64", "train.precision=bf16"] if bench.gpu else list(SMALL_LOOP)
    steps = 10 if bench.gpu else 2
    watched_steps(given, bench, steps)
    yield Claim("the host never waits within a step", f"{steps} steps", bench.on_gpu(passed=True))


def watched_steps(given: Sequence[str], bench: Bench, steps: int) -> None:
    """So many steps of `augmented` with these settings. On a GPU raises RuntimeError where the host waits for it."""
    with augmented(given, bench, steps + WARM_UP) as (in_line, state):
        context = replace(in_line, data=beside_the_step(in_line.data, bench.device))
        batches = iter(context.data.loader.batches(0))
        for batch in itertools.islice(batches, WARM_UP):
            train_step(context, state, *batch)
        common.now(bench.device)
        try:
            if bench.gpu:
                torch.cuda.set_sync_debug_mode("error")
            for batch in batches:
                train_step(context, state, *batch)
        finally:
            if bench.gpu:
                torch.cuda.set_sync_debug_mode("default")


@contextmanager
def augmented(given: Sequence[str], bench: Bench, steps: int) -> Iterator[tuple[TrainContext, State]]:
    """A run with these settings on `steps` batches of noise in memory, with RandAugment, mixup and erasing."""
    shared = ["data.root=memory", "logger=none", "augmentation=advanced", "augmentation.policy=rand-cot-m15-n2-mstd0.5"]
    config = compose("train", [*shared, "train.clip_norm=1", *given]) | {"output_dir": str(bench.folder)}
    with join_ranks(timeout_minutes=10) as ranks:
        loop = LoopBench(config, ranks, steps)
        images, targets, indices = next(loop.context.data.loader.batches(0))
        pixels = torch.randint(256, images.shape, dtype=torch.uint8, device=bench.device)
        transform = parts.train_transform(config, parts.settings_of(config), loop.context.precision)
        loader = MemoryLoader((pixels, targets, indices), steps)
        loop.state.model.train()
        yield replace(loop.context, data=replace(loop.context.data, loader=loader, transform=transform)), loop.state
