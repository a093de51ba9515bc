"""What the training loop costs: `python -m cotnet.benchmarks.loop [--json FILE] [key=value] ...`.

One batch in memory, already normalised, is trained on again and again: by `train_one_epoch`, by a bare loop of forward,
loss, backward and step over the same model and optimizer, and by `train_one_epoch` with every report written, in turns.
What the bare loop leaves out and ours is charged for: the average of the weights, the norm of the gradient, accuracy,
the check for values that are not finite, clocks, seeds and agreements. The first two are also timed alone.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from cotnet import parts
from cotnet.benchmarks import meters, report
from cotnet.commands.program import one_line
from cotnet.config.build import build
from cotnet.config.compose import Config, compose
from cotnet.engine.distributed import Ranks, join_ranks
from cotnet.engine.launch import launch
from cotnet.engine.losses import loss_function
from cotnet.engine.optimizer import MovingAverage, parameter_groups
from cotnet.engine.precision import Precision, choose_precision
from cotnet.engine.state import State
from cotnet.engine.step import Output, Reports, TrainContext, TrainData, clip_gradients, wrap
from cotnet.engine.training import train_one_epoch
from cotnet.errors import InputError
from cotnet.reporting.environment import start_of
from cotnet.reporting.run_reports import RunReports

SIZES = ("backbone=resnet50", "data.root=memory", "data.image_size=128", "train.batch_size=32")
WAIT = 10  # minutes


class Memory:
    """A loader of the same batch, `steps` times an epoch."""

    def __init__(self, batch: tuple[Tensor, Tensor, Tensor], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def batches(self, epoch: int, first: int = 0) -> Iterator[Any]:  # noqa: ARG002 - a loader's signature
        return itertools.repeat(self.batch, self.steps - first)


class Bench:
    """One rank's model, optimizer, batch and run, and the seconds that a turn of `steps` steps takes in each way."""

    def __init__(self, config: Config, ranks: Ranks, steps: int) -> None:
        settings = parts.settings_of(config)
        self.ranks, self.steps, self.config, self.saving = ranks, steps, config, settings.checkpoint
        precision = Precision(name=choose_precision(settings.train.precision, ranks.device), device=ranks.device)
        precision.set_up_process()
        torch.manual_seed(0)
        model = parts.build_backbone(config["backbone"]).to(ranks.device, precision.parameters)
        groups = parameter_groups(model, config["optimizer"].get("weight_decay", 0.0))
        self.state = State(
            model=model,
            ema=MovingAverage(model, settings.train.ema_decay),
            optimizer=parts.build_optimizer(config, groups),
            scaler=precision.scaler(),
        )
        count, side = settings.train.batch_size // ranks.world_size, settings.data.image_size
        images = torch.randn(count, 3, side, side, device=ranks.device, dtype=precision.parameters)
        targets = torch.randint(settings.data.num_classes, (count,), device=ranks.device)
        loader = Memory((images, targets, torch.arange(count)), self.steps)
        self.context = TrainContext(
            ranks=ranks,
            settings=settings.train,
            seed=settings.seed,
            precision=precision,
            ddp_model=wrap(model, ranks),
            criterion=loss_function(settings.train),
            schedule=parts.schedule_of(config),
            data=TrainData(
                loader=loader,
                steps_per_epoch=self.steps,
                transform=lambda images, targets, _indices, _epoch: (images, targets),
                files=[""] * count,
            ),
            output=self._output(Reports()),
            evaluate=dict,
            stop_requested=lambda: False,
        )

    def _output(self, reports: Reports) -> Output:
        return Output(folder=Path(self.config["output_dir"]), config="{}", saving=self.saving, reports=reports)

    def ours(self, reports: Reports) -> float:
        """A turn of `train_one_epoch`."""
        self.state.model.train()
        context = dataclasses.replace(self.context, output=self._output(reports))
        started = time.perf_counter()
        train_one_epoch(context, self.state)
        self.state.batch_in_epoch = 0
        return meters.now(self.ranks.device) - started

    def bare(self) -> float:
        """A turn of forward, loss, backward and step, and nothing else."""
        context, optimizer, scaler = self.context, self.state.optimizer, self.state.scaler
        started = time.perf_counter()
        for images, targets, _ in context.data.loader.batches(0):
            with context.precision.autocast():
                logits = context.ddp_model(images)
            scaler.scale(context.criterion(logits.to(images.dtype), targets)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return meters.now(self.ranks.device) - started

    def parts(self) -> dict[str, float]:
        """Milliseconds of one update of the averaged weights, and of one norm of the gradient."""
        for parameter in self.state.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        tasks: dict[str, Callable[[], object]] = {
            "averaged weights": self.state.ema.update,
            "gradient norm": lambda: clip_gradients(self.state.model, self.context.settings),
        }
        times = {name: 1000 * statistics.median(self._timed(task) for _ in range(10)) for name, task in tasks.items()}
        self.state.optimizer.zero_grad(set_to_none=True)
        return times

    def _timed(self, task: Callable[[], object]) -> float:
        started = time.perf_counter()
        task()
        return meters.now(self.ranks.device) - started


def measure_loop(config: Config, steps: int, rounds: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """The loop against the bare one, logging on against off: medians over rounds of turns in changing order."""
    with join_ranks(timeout_minutes=WAIT) as ranks:
        bench, folder = Bench(config, ranks, steps), Path(config["output_dir"])
        logger = build(config["logger"], "logger")
        here = start_of(0, ranks.world_size)
        reports = RunReports(
            folder,
            logger,
            bench.state,
            epochs=1,
            max_steps=None,
            classes=1000,
            config=config,
            environment=here,
            steps_per_epoch=bench.steps,
            terminal=False,
        )
        ways: dict[str, Callable[[], float]] = {
            "bare": bench.bare,
            "ours": lambda: bench.ours(Reports()),
            "logging": lambda: bench.ours(reports),
        }
        for way in ways.values():
            way()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds):
            progress(f"round {turn + 1} of {rounds}")
            names = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
            for name in names:
                times[name].append(1000 * ways[name]() / bench.steps)
        parts = bench.parts()
        logger.finish(0)
    bare, ours, logging = (statistics.median(times[name]) for name in ways)
    images = bench.context.settings.batch_size
    rows = [{"name": "loop/bare", "of": "forward, loss, backward, step", "milliseconds": bare}]
    measured = {"milliseconds": ours, **_ratio(times, "ours", "bare"), "target": 1.03}
    rows.append({"name": "loop/ours", "of": "bare", **measured})
    measured = {"milliseconds": logging, **_ratio(times, "logging", "ours"), "target": 1.01}
    rows.append({"name": "loop/logging", "of": "ours", **measured})
    rows += [{"name": f"loop/{name}", "of": "bare", "milliseconds": t, "ratio": t / bare} for name, t in parts.items()]
    return [row | {"images": images} for row in rows]


def _ratio(times: dict[str, list[float]], one: str, other: str) -> dict[str, Any]:
    """The median of the rounds' ratios, and all of them."""
    ratios = [a / b for a, b in zip(times[one], times[other], strict=True)]
    return {"ratio": statistics.median(ratios), "ratios": ratios}


def measure_ranks(config: Config, steps: int, rounds: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Two gloo ranks on two cores against one process with two threads, at the same batch."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn, ranks in itertools.product(range(max(rounds // 3, 1)), rates):
        progress(f"{ranks} ranks, round {turn + 1}")
        launch(_rate_of_ranks, {"config": config, "steps": steps}, ranks)
        rates[ranks].append(json.loads((Path(config["output_dir"]) / "rate.json").read_text()))
    rows: list[dict[str, Any]] = []
    for ranks, found in rates.items():
        rows.append(
            {"name": f"loop/{ranks} ranks", "of": "loop/1 ranks", "images_per_second": statistics.median(found)}
        )
    ratio = rows[1]["images_per_second"] / rows[0]["images_per_second"]
    rows[1] |= {"ratio": ratio, "target": 0.9, "rates": rates}
    return rows


def _rate_of_ranks(given: dict[str, Any], store: dist.Store | None) -> int:
    """A rank: write images per second over three turns, the first of which does not count."""
    with join_ranks(store, timeout_minutes=WAIT) as ranks:
        bench = Bench(given["config"], ranks, given["steps"])
        seconds = [bench.ours(Reports()) for _ in range(3)][1:]
        if ranks.first:
            rate = bench.context.settings.batch_size * bench.steps / statistics.mean(seconds)
            (Path(given["config"]["output_dir"]) / "rate.json").write_text(json.dumps(rate))
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; exits with 2 and one line for wrong settings."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.benchmarks.loop", description="What the loop costs.")
    parser.add_argument("overrides", nargs="*", help=f"as for train.py; unless given: {' '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each kind (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps in a turn (%(default)s)")
    parser.add_argument("--json", type=report.output_file, help="file for the records")
    given = parser.parse_intermixed_args(arguments)
    os.environ.setdefault("WANDB_MODE", "offline")
    with one_line(keep=False), tempfile.TemporaryDirectory() as folder:
        if min(given.rounds, given.steps) < 1:
            raise InputError("--rounds and --steps must be at least 1")
        config = compose("train", [*SIZES, *given.overrides]) | {"output_dir": folder}
        rows = measure_loop(config, given.steps, given.rounds, _progress)
        if not torch.cuda.is_available():
            rows += measure_ranks(config, given.steps, given.rounds, _progress)
        _progress("")
    report.print_table(rows)
    if given.json:
        report.write_json(given.json, rows)


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
