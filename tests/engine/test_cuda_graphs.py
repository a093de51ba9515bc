"""`reduce-overhead` and `max-autotune` replay CUDA graphs, which write every result to the same memory: nothing of ours
keeps one beyond the next replay. Here, a layer that does so; on a GPU, the graphs themselves."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import environment
from torch import nn

from cotnet.benchmarks.loop import LoopBench
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.optimizer import MovingAverage
from cotnet.engine.precision import Precision
from cotnet.engine.state import State
from cotnet.engine.step import train_step
from cotnet.evaluation.run import predict
from cotnet.evaluation.suites import EvaluationSet
from data.sets.image_set import complete_set

CPU, LONG = torch.device("cpu"), pytest.mark.long
FEATURES, CLASSES, BATCH = 3 * 8 * 8, 10, 4


class Replayed(torch.autograd.Function):
    """x weight^T, with the result and the gradient of the weight in memory of the graph."""

    @staticmethod
    def forward(ctx, x, weight, result, gradient):
        ctx.save_for_backward(x)
        ctx.gradient = gradient
        np.matmul(x.detach().numpy(), weight.detach().numpy().T, out=result)
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        np.matmul(upstream.numpy().T, x.numpy(), out=ctx.gradient)
        return None, torch.from_numpy(ctx.gradient), None, None


class Net(nn.Module):
    """A linear layer of flattened images, replayed or not."""

    def __init__(self, *, replayed):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CLASSES, FEATURES, generator=generator) / 10)
        self.replayed, self.result = replayed, np.zeros((BATCH, CLASSES), np.float32)
        self.gradient = np.zeros((CLASSES, FEATURES), np.float32)

    def forward(self, images):
        if self.replayed:
            return Replayed.apply(images.flatten(1), self.weight, self.result, self.gradient)
        return images.flatten(1) @ self.weight.T


def stepped(net, tmp_path, *, mode, parts):
    """The weight after a step of `parts` micro-batches."""
    given = ["backbone=resnet_small", "data.root=x", "logger=none", "data.image_size=32", f"train.accumulation={parts}"]
    given += [f"train.batch_size={parts * BATCH}", "train.precision=fp32", "train.compile=false"]
    config = compose("train", given) | {"output_dir": str(tmp_path)}
    context = LoopBench(config, Ranks(rank=0, world_size=1, device=CPU), 1).context
    settings = replace(context.settings, compile=mode)
    context = replace(context, ddp_model=net, settings=settings, schedule=lambda _epoch: 1.0)
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
    state = State(model=net, ema=MovingAverage(net, 0.0), optimizer=optimizer, scaler=scaler)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(parts * BATCH, 3, 8, 8, generator=generator)
    train_step(context, state, images, torch.arange(parts * BATCH) % CLASSES, torch.arange(parts * BATCH))
    return net.weight.detach()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_micro_batches_add_up(mode, tmp_path):
    expected = stepped(Net(replayed=False), tmp_path, mode=False, parts=3)
    torch.testing.assert_close(stepped(Net(replayed=True), tmp_path, mode=mode, parts=3), expected)
    unaware = stepped(Net(replayed=True), tmp_path, mode=False, parts=3)
    assert (unaware - expected).abs().max() > 1e-3  # the layer does what it is here for


class Batches:
    """Three batches of drawn pixels."""

    def batches(self, epoch, first=0):
        for start in range(0, 3 * BATCH, BATCH):
            pixels = np.random.default_rng([epoch, start]).integers(0, 256, (BATCH, 3, 8, 8), dtype=np.uint8)
            yield torch.from_numpy(pixels), torch.zeros(BATCH, dtype=torch.int64), torch.arange(start, start + BATCH)


@pytest.mark.parametrize("flip", [False, True])
def test_the_logits_that_an_evaluation_keeps_stay(flip):
    files = tuple(f"a/{number}.png" for number in range(3 * BATCH))
    images = complete_set(Path("x"), files, labels=np.zeros(3 * BATCH, dtype=np.int64), classes=("a",))
    how = {"sizes": [8], "missing": {}, "classes": CLASSES, "flip": flip, "prepare": lambda pixels: pixels / 255}
    how |= {"precision": Precision(name="fp32", device=CPU), "ranks": Ranks(rank=0, world_size=1, device=CPU)}
    with torch.no_grad():
        kept = [
            predict(Net(replayed=replayed), EvaluationSet(name="x", images=images), Batches(), **how)[0][8].logits
            for replayed in (False, True)
        ]
    np.testing.assert_allclose(kept[1], kept[0], rtol=1e-5, atol=1e-6)


COMPILED = """
import sys, torch
from cotnet.benchmarks.loop import LoopBench
from cotnet.config.compose import compose
from cotnet.engine.determinism import set_variables
from cotnet.engine.distributed import Ranks
from cotnet.engine.step import train_step
set_variables(deterministic=True, gpu=True)
ranks = Ranks(rank=0, world_size=1, device=torch.device("cuda", 0))
def losses(mode):
    given = ["backbone=cotnet_small", "data.root=x", "logger=none", "data.image_size=32", "train.batch_size=64"]
    given += ["train.accumulation=2", f"train.compile={mode}", "train.precision=bf16", "data.num_classes=10"]
    bench = LoopBench(compose("train", given) | {"output_dir": sys.argv[2]}, ranks, 6)
    (images, targets, indices), *_ = bench.context.data.loader.batches(0)
    torch.manual_seed(0)
    images, targets = torch.randn_like(images), torch.arange(64, device="cuda") % 10
    return [float(train_step(bench.context, bench.state, images, targets, indices).grad_norm) for _ in range(6)]
eager, found, again = losses("false"), losses(sys.argv[1]), losses(sys.argv[1])
assert found == again, (found, again)
for ours, theirs in zip(found, eager):
    assert abs(ours - theirs) < 0.1 * theirs, (found, eager)
"""


@pytest.mark.gpu
@pytest.mark.parametrize(
    "mode", ["reduce-overhead", *(pytest.param(one, marks=LONG) for one in ("default", "max-autotune"))]
)
def test_every_mode_trains_on_a_gpu(mode, tmp_path):
    """Micro-batches too; the same figures twice, and close to those of the uncompiled model."""
    command = [sys.executable, "-c", COMPILED, mode, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
