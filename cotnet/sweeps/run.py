"""Running a sweep: which trials are left, several at a time, what became of each."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cotnet.config import run_folder
from cotnet.config.continuing import names_run
from cotnet.engine.signals import stop_signals
from cotnet.errors import INTERRUPTED
from cotnet.reporting.terminal import say
from cotnet.sweeps import results
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.processes import Process, Share, outcome, shares, visible_gpus
from cotnet.sweeps.search import Search
from cotnet.sweeps.space import Parameter, SweepSettings, Trial, grid, name_trials, quoted
from cotnet.sweeps.view import View

POLL_SECONDS = 0.2
ENDING_SECONDS = 60  # in which a trial saves, before it is killed
Batch = Callable[[list[list[str]]], list[int]]  # runs jobs, each a list of overrides, and gives their exit codes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command line asks for. `flags` and `shared` go to every trial; `program` is a script's path; `batch` is
    the launcher that runs trials elsewhere, or None for processes on this machine."""

    settings: SweepSettings
    folder: Path
    program: Path
    flags: list[str]
    shared: list[str]
    parameters: list[Parameter]
    batch: Batch | None

    def overrides(self, trial: Trial) -> list[str]:
        """What composes a trial."""
        return [*self.shared, *trial.overrides, quoted("output_dir", self.folder / trial.name)]

    def command(self, trial: Trial) -> list[str]:
        return [sys.executable, str(self.program), *self.flags, *self.overrides(trial)]


class Source(Protocol):
    """Where trials come from; `total` is how many there are in all."""

    total: int

    def names(self) -> set[str]:
        """Of the trials that this command is about."""

    def next(self) -> Trial | None:
        """The next one to run, None when there is none (left, or until another has ended)."""

    def tell(self, trial: Trial, *, failed: bool) -> None:
        """What became of one."""


class Grid:
    """Every combination that the ledger does not know the end of."""

    def __init__(self, ledger: Ledger, settings: SweepSettings, parameters: Sequence[Parameter]) -> None:
        done = ledger.trials("finished") if settings.retry else ledger.trials("finished", "failed")
        self._trials = name_trials(grid(parameters), ledger.trials())
        self._left = [trial for trial in self._trials if trial not in done]
        self.total = len(self._trials)

    def names(self) -> set[str]:
        return {trial.name for trial in self._trials}

    def next(self) -> Trial | None:
        return self._left.pop(0) if self._left else None

    def tell(self, trial: Trial, *, failed: bool) -> None:
        """Nothing depends on it."""


def conduct(plan: Plan) -> int:
    """Run what is left of a sweep and show what it came to; the exit code.

    0: all is done; 1: a trial failed; 75: the sweep was interrupted, or a trial was: the same command continues.

    Raises InputError for a wrong plan, and when no trial logs the target.
    """
    # what cannot be is found before the folder becomes this sweep's
    free = [] if plan.batch else shares(plan.settings.parallel, visible_gpus(), sorted(os.sched_getaffinity(0)))
    with run_folder.claimed(plan.folder):
        ledger = Ledger.open(plan.folder, identity(plan))
        ledger.start = start(plan)
        results.results(ledger)  # an unknown target is found before anything runs, where that can be known
        ledger.begin(ledger.start)
        source = (Search if plan.settings.search else Grid)(ledger, plan.settings, plan.parameters)
        stopped = side_by_side(plan, ledger, source, free) if free else in_batches(plan, ledger, source)
        ours = source.names()
        states = {entry.state for name, entry in ledger.entries.items() if name in ours}
    results.show(plan.folder)
    if stopped or states & {"started", "interrupted"}:
        say(f"interrupted; the same command continues {plan.folder}")
        return INTERRUPTED
    return int("failed" in states)


def identity(plan: Plan) -> dict[str, Any]:
    """What makes two sweeps the same: a grid may get more values, a search more trials."""
    named: dict[str, Any] = {
        "format": 1,
        "sampler": plan.settings.sampler,
        "shared": sorted(filter(names_run, plan.shared)),
    }
    if plan.settings.search:
        named |= {"seed": plan.settings.seed, "space": {p.key: p.text for p in plan.parameters}}
    return named


def start(plan: Plan) -> dict[str, Any]:
    """What may change from one start to the next, as `results` needs it."""
    about = {"program": plan.program.name, "flags": plan.flags, "shared": plan.shared}
    return about | {"target": plan.settings.target, "direction": plan.settings.direction}


def side_by_side(plan: Plan, ledger: Ledger, source: Source, free: list[Share]) -> bool:
    """Processes on this machine, a share of it each; whether a signal ended it before all was done."""
    running: list[tuple[Trial, Process]] = []
    heard = 0
    with stop_signals() as received, View(plan.settings, ledger, source.total) as view, _ended_with(running):
        while True:
            while free and not received and (trial := source.next()):
                ledger.record(trial, "started")
                view.started(trial)
                running.append((trial, Process(plan.command(trial), plan.folder / trial.name, free.pop(0))))
            if not running:
                return bool(received)
            if len(received) > heard:
                heard = len(received)
                view.say("stopping: each trial finishes its step and saves; Ctrl-C again ends them at once")
                for _, process in running:
                    process.signal(signal.SIGKILL if received.count(signal.SIGINT) > 1 else signal.SIGTERM)
            for trial, process in list(running):
                if (code := process.code()) is not None:
                    running.remove((trial, process))
                    free.insert(0, process.share)
                    last = process.last_line()
                    conclude(ledger, source, view, trial, code=code, seconds=process.seconds, last_line=last)
            view.refresh([(trial, process.folder) for trial, process in running])
            time.sleep(POLL_SECONDS)


def in_batches(plan: Plan, ledger: Ledger, source: Source) -> bool:
    """Hydra's launcher runs the trials: a grid at once, a search `sweep.parallel` at a time. A signal is its affair."""
    size = plan.settings.parallel if plan.settings.search else source.total
    assert plan.batch
    with View(plan.settings, ledger, source.total) as view:
        while trials := [trial for trial in (source.next() for _ in range(size)) if trial]:
            for trial in trials:
                ledger.record(trial, "started")
                view.started(trial)
            began = time.monotonic()
            codes = plan.batch([plan.overrides(trial) for trial in trials])
            seconds = (time.monotonic() - began) / len(trials)
            for trial, code in zip(trials, codes, strict=True):
                last = f"exit code {code}; the launcher has its log"
                conclude(ledger, source, view, trial, code=code, seconds=seconds, last_line=last)
    return False


def conclude(
    ledger: Ledger, source: Source, view: View, trial: Trial, *, code: int, seconds: float, last_line: str
) -> None:
    """Write down what became of a trial, and say it."""
    state = outcome(code)
    line = last_line if state == "failed" else killed(code)
    ledger.record(trial, state, seconds=seconds, code=code, line=line)
    figure = results.best_figure(ledger.folder / trial.name, ledger.start["target"], ledger.start["direction"])
    if state == "finished" and figure is None:
        results.results(ledger)  # raises when none logs the target
    if state in ("finished", "failed"):
        source.tell(trial, failed=state == "failed")
    view.ended(trial, state, line, figure, seconds)


def killed(code: int) -> str:
    """By what, for a negative exit code."""
    if code >= 0:
        return ""
    hint = " (often for want of memory)" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"


@contextmanager
def _ended_with(running: list[tuple[Trial, Process]]) -> Iterator[None]:
    """However this ends, no trial is left running; an error's trials stay "started" and continue next time."""
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for _, process in running:
                process.signal(number)
            deadline = time.monotonic() + ENDING_SECONDS
            while any(process.code() is None for _, process in running) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
