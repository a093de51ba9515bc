"""What the training loop costs: `python -m cotnet.benchmarks.loop [--json FILE] [key=value] ...`.

Trains on one batch in memory, already normalised, in turns: by `train_one_epoch`; by a bare loop of forward, loss,
backward and step over the same model and optimizer; and by `train_one_epoch` with every report written. Ours does what
the bare loop leaves out: the average of the weights, the norm of the gradient, accuracy, the check for values that are
not finite, clocks, seeds and agreements. The first two are also timed alone.
"""

import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from cotnet import parts
from cotnet.benchmarks import common
from cotnet.commands.program import one_line
from cotnet.commands.run_parts import new_state
from cotnet.commands.train_classifier import backbone_of, trained_model
from cotnet.config.build import build
from cotnet.config.compose import Config, compose
from cotnet.engine.determinism import set_algorithms
from cotnet.engine.distributed import Ranks, join_ranks
from cotnet.engine.launch import launch
from cotnet.engine.losses import loss_function
from cotnet.engine.precision import precision_of
from cotnet.engine.step import Output, Reports, TrainContext, TrainData, classification, clip_gradients
from cotnet.engine.training import train_one_epoch
from cotnet.pages.folders import try_report
from cotnet.reporting.environment import start_of
from cotnet.reporting.run_reports import RunReports
from data.prepare.commands import positive

SIZES = ("backbone=resnet50", "data.root=memory", "data.image_size=128", "train.batch_size=32")
WAIT = 10  # minutes


@dataclasses.dataclass(frozen=True)
class MemoryLoader:
    """A loader of the same batch, `steps` times an epoch."""

    batch: tuple[Tensor, Tensor, Tensor]
    steps: int

    def batches(self, epoch: int, first: int = 0) -> Iterator[Any]:  # noqa: ARG002 - a loader's signature
        return itertools.repeat(self.batch, self.steps - first)


class LoopBench:
    """One rank's model, optimizer, batch and run; each way of training is a turn of `steps` steps."""

    def __init__(self, config: Config, ranks: Ranks, steps: int) -> None:
        settings = parts.settings_of(config)
        precision = precision_of(settings.train, ranks.device)
        precision.set_up_process()
        set_algorithms(ranks.device, deterministic=settings.train.deterministic)
        self.state, self.steps = new_state(config, settings, precision, lambda: backbone_of(config, settings)), steps
        count, side = settings.train.batch_size // ranks.world_size, settings.data.image_size
        images = torch.randn(count, 3, side, side, device=ranks.device, dtype=precision.parameters)
        images = images.to(memory_format=precision.layout)
        targets = torch.randint(settings.data.num_classes, (count,), device=ranks.device)
        self.context = TrainContext(
            ranks=ranks,
            settings=settings.train,
            seed=settings.seed,
            precision=precision,
            ddp_model=trained_model(settings, self.state, ranks, images=count, sizes=[side]),
            objective=classification(loss_function(settings.train), precision),
            schedule=parts.schedule_of(config),
            data=TrainData(
                loader=MemoryLoader((images, targets, torch.arange(count)), steps),
                steps_per_epoch=steps,
                transform=lambda images, targets, _indices, _epoch: (images, targets),
                files=[""] * count,
            ),
            output=Output(folder=Path(config["output_dir"]), config="", saving=settings.checkpoint, reports=Reports()),
            evaluate=dict,
            evaluate_every=1,
            stop_requested=lambda: False,
        )

    def ours(self, reports: Reports) -> float:
        """Seconds of a turn of `train_one_epoch`."""
        self.state.model.train()
        output = dataclasses.replace(self.context.output, reports=reports)
        context, self.state.batch_in_epoch = dataclasses.replace(self.context, output=output), 0
        return common.seconds(lambda: train_one_epoch(context, self.state), self.context.ranks.device)

    def bare(self) -> float:
        """Seconds of a turn of forward, loss, backward and step, and nothing else."""
        context, state = self.context, self.state
        state.model.train()
        criterion = loss_function(context.settings)
        how: dict[str, Any] = {"precision": context.precision, "criterion": criterion, "scaler": state.scaler}

        def train() -> None:
            for images, targets, _ in context.data.loader.batches(0):
                common.bare_step(context.ddp_model, state.optimizer, images, targets, **how)

        return common.seconds(train, context.ranks.device)

    def extras(self) -> dict[str, float]:
        """Milliseconds of one update of the averaged weights, and of one norm of the gradient."""
        for parameter in self.state.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        norm = partial(clip_gradients, self.state.model, self.context.settings)
        times = {}
        for name, task in (("averaged weights", self.state.ema.update), ("gradient norm", norm)):
            times[name] = 1000 * median(common.seconds(task, self.context.ranks.device) for _ in range(10))
        self.state.optimizer.zero_grad(set_to_none=True)
        return times


def measure_loop(config: Config, steps: int, rounds: int) -> list[dict[str, Any]]:
    """The loop against the bare one, and logging on against off: medians over rounds."""
    with join_ranks(timeout_minutes=WAIT) as ranks:
        bench, logger = LoopBench(config, ranks, steps), build(config["logger"], "logger")
        run: dict[str, Any] = {"epochs": 1, "max_steps": None, "steps_per_epoch": steps, "classes": 1000}
        run |= {"config": config, "environment": start_of(0, 1), "terminal": False, "page": try_report}
        reports = RunReports(Path(config["output_dir"]), logger, bench.state, **run)
        ours, logging = partial(bench.ours, Reports()), partial(bench.ours, reports)
        seconds = common.in_turns({"bare": partial(bench.bare), "ours": ours, "logging": logging}, rounds)
        extras = bench.extras()
        logger.finish(0)
    times = {name: 1000 * median(found) / steps for name, found in seconds.items()}
    rows = [{"name": "loop/bare", "of": "forward, loss, backward, step", "milliseconds": times["bare"]}]
    for name, other, target in (("ours", "bare", 1.03), ("logging", "ours", 1.01)):
        ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
        measured = {"milliseconds": times[name], "ratio": median(ratios), "ratios": ratios, "target": target}
        rows.append({"name": f"loop/{name}", "of": other, **measured})
    for name, time in extras.items():
        rows.append({"name": f"loop/{name}", "of": "bare", "milliseconds": time, "ratio": time / times["bare"]})
    return [row | {"images": bench.context.settings.batch_size} for row in rows]


def measure_ranks(config: Config, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Two gloo ranks on two cores against one process with two threads, at the same batch."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn, ranks in itertools.product(range(max(rounds // 3, 1)), rates):
        common.progress(f"{ranks} ranks, round {turn + 1}")
        launch(_rate_of_ranks, {"config": config, "steps": steps}, ranks)
        rates[ranks].append(json.loads((Path(config["output_dir"]) / "rate.json").read_text()))
    one, two = map(median, rates.values())
    return [
        {"name": "loop/1 ranks", "of": "loop/1 ranks", "images_per_second": one},
        {"name": "loop/2 ranks", "of": "loop/1 ranks", "images_per_second": two}
        | {"ratio": two / one, "target": 0.9, "rates": rates},
    ]


def _rate_of_ranks(given: dict[str, Any], store: dist.Store | None) -> int:
    """A rank: write images per second over three turns, the first of which does not count."""
    with join_ranks(store, timeout_minutes=WAIT) as ranks:
        bench = LoopBench(given["config"], ranks, given["steps"])
        seconds = [bench.ours(Reports()) for _ in range(3)][1:]
        if ranks.first:
            rate = bench.context.settings.batch_size * bench.steps / mean(seconds)
            (Path(given["config"]["output_dir"]) / "rate.json").write_text(json.dumps(rate))
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; exits with 2 and one line for wrong settings."""
    parser = common.options("loop", "What the loop costs.", plot=False)
    parser.add_argument("overrides", nargs="*", help=f"as for train.py; unless given: {' '.join(SIZES)}")
    parser.add_argument("--rounds", type=positive, default=6, help="turns of each kind (%(default)s)")
    parser.add_argument("--steps", type=positive, default=3, help="optimizer steps in a turn (%(default)s)")
    given = parser.parse_intermixed_args(arguments)
    os.environ.setdefault("WANDB_MODE", "offline")
    with one_line(keep=False), tempfile.TemporaryDirectory() as folder:
        config = compose("train", [*SIZES, *given.overrides]) | {"output_dir": folder}
        rows = measure_loop(config, given.steps, given.rounds)
        if not torch.cuda.is_available():
            rows += measure_ranks(config, given.steps, given.rounds)
    common.finish(rows, given.json)


if __name__ == "__main__":
    main()
