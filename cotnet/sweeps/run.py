"""Run a sweep: which trials are left, several at a time, and what became of each."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cotnet.config import run_folder
from cotnet.config.continuing import names_run
from cotnet.engine.signals import stop_signals
from cotnet.errors import INTERRUPTED
from cotnet.reporting.terminal import clock, say
from cotnet.sweeps import results
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.processes import Share, TrialProcess, killed_by, outcome, shares, visible_gpus
from cotnet.sweeps.search import propose
from cotnet.sweeps.space import SweepPlan, Trial, grid, name_trials, quoted

POLL_SECONDS, DRAW_SECONDS = 0.2, 1.0
Batch = Callable[[list[list[str]]], list[int]]  # runs jobs, each a list of overrides, and gives their exit codes


def run_sweep(plan: SweepPlan, program: Path, *, flags: Sequence[str], batch: Batch | None) -> int:
    """Run what is left of a sweep and show its results; the exit code.

    0: all is done; 1: a trial failed; 75: the sweep or a trial was interrupted, and the same command continues.
    Trials are processes `python program flags overrides` on this machine, or jobs of the launcher `batch`.

    Raises InputError for a wrong plan, and when no trial logs the target.
    """
    settings = plan.settings
    # Too few devices raise before the folder becomes this sweep's.
    free = [] if batch else shares(settings.parallel, visible_gpus(), sorted(os.sched_getaffinity(0)))
    start = {"program": program.name, "flags": list(flags), "shared": plan.shared}
    with run_folder.claimed(plan.folder):
        ledger = Ledger.open(plan.folder, identity(plan))
        ledger.start = start | {"target": settings.target, "direction": settings.direction}
        results.rank_trials(ledger)  # an unknown target raises before anything runs
        ledger.begin(ledger.start)
        finished, failed = len(ledger.trials("finished")), len(ledger.trials("failed"))
        again = " (sweep.retry=true runs those again)" if failed and not settings.retry else ""
        counts = f"{finished} finished, {failed} failed{again}, {len(ledger.entries) - finished - failed} cut short"
        say(f"{plan.folder}: of {plan.total} trials {counts}; {settings.parallel} at a time")
        if batch:
            run_batches(plan, ledger, batch)
            stopped = False  # the launcher handles signals
        else:
            stopped = run_local(plan, ledger, free, command=[sys.executable, str(program), *flags])
        asked = {trial.name for trial in known_trials(plan, ledger)}  # a grid's ledger may hold other values' trials
        states = {entry.state for name, entry in ledger.entries.items() if name in asked}
    results.show(plan.folder)
    if stopped or states & {"started", "interrupted"}:
        say(f"interrupted; the same command continues {plan.folder}")
        return INTERRUPTED
    return int("failed" in states)


def identity(plan: SweepPlan) -> dict[str, Any]:
    """What makes two sweeps the same: a grid may get more values, a search more trials."""
    shared = sorted(filter(names_run, plan.shared))
    named: dict[str, Any] = {"format": 1, "sampler": plan.settings.sampler, "shared": shared}
    if plan.settings.search:
        named |= {"seed": plan.settings.seed, "space": {p.key: p.text for p in plan.parameters}}
    return named


def known_trials(plan: SweepPlan, ledger: Ledger) -> list[Trial]:
    """Every combination of a grid; of a search, the trials that it proposed so far."""
    return ledger.trials() if plan.settings.search else name_trials(grid(plan.parameters), ledger.trials())


def trials_left(plan: SweepPlan, ledger: Ledger) -> Iterator[Trial]:
    """Yield the trials to run, each recorded as started: a search proposes from the ledger."""
    ended = ledger.trials("finished") if plan.settings.retry else ledger.trials("finished", "failed")
    left = (trial for trial in known_trials(plan, ledger) if trial not in ended)
    proposed = iter(lambda: propose(plan, ledger), None) if plan.settings.search else ()
    for trial in chain(left, proposed):
        ledger.record(trial, "started")
        say(f"{_count(plan, ledger)} {trial.name}: started")
        yield trial


def run_local(plan: SweepPlan, ledger: Ledger, free: list[Share], *, command: Sequence[str]) -> bool:
    """Run trials as processes, one on each free share; whether a signal stopped the sweep.

    After an error their state stays "started": they save and end with this process, and continue next time.
    """
    trials = trials_left(plan, ledger)
    running: list[TrialProcess] = []
    handled, drawn = 0, 0.0
    with stop_signals() as received, results.live_bars() as live:
        while True:
            while free and not received and (trial := next(trials, None)):
                words = [*command, *overrides(plan, trial)]
                running.append(TrialProcess(trial, words, plan.folder / trial.name, free.pop(0)))
            if not running:
                return bool(received)
            if len(received) > handled:
                handled = len(received)
                _stop(running, received)
            for ended in [one for one in running if one.process.poll() is not None]:
                running.remove(ended)
                free.insert(0, ended.share)
                code, last = ended.process.returncode, ended.last_line()
                end_trial(plan, ledger, ended.trial, code=code, seconds=ended.seconds, last_line=last)
            if live and time.monotonic() - drawn > DRAW_SECONDS:
                drawn = time.monotonic()
                folders = [(one.trial, one.folder) for one in running]
                live.update(results.bars(folders, plan.settings.target, width=live.console.width), refresh=True)
            time.sleep(POLL_SECONDS)


def _stop(running: Sequence[TrialProcess], received: Sequence[int]) -> None:
    say("stopping: each trial finishes its step and saves; Ctrl-C again ends them at once")
    for one in running:
        one.process.send_signal(signal.SIGKILL if received.count(signal.SIGINT) > 1 else signal.SIGTERM)


def run_batches(plan: SweepPlan, ledger: Ledger, batch: Batch) -> None:
    """Let a launcher run the trials: a grid's at once, a search's `sweep.parallel` at a time."""
    trials = trials_left(plan, ledger)
    while jobs := list(islice(trials, plan.settings.parallel if plan.settings.search else None)):
        began = time.monotonic()
        codes = batch([overrides(plan, trial) for trial in jobs])
        seconds = (time.monotonic() - began) / len(jobs)
        for trial, code in zip(jobs, codes, strict=True):
            last = f"exit code {code}; the launcher has its log"
            end_trial(plan, ledger, trial, code=code, seconds=seconds, last_line=last)


def overrides(plan: SweepPlan, trial: Trial) -> list[str]:
    """All overrides of a trial's run."""
    return [*plan.shared, *trial.overrides, quoted("output_dir", plan.folder / trial.name)]


def end_trial(plan: SweepPlan, ledger: Ledger, trial: Trial, *, code: int, seconds: float, last_line: str) -> None:
    """Record and say how a trial ended.

    Raises InputError if it finished and no trial logs the target.
    """
    state = outcome(code)
    line = last_line if state == "failed" else killed_by(code)
    ledger.record(trial, state, seconds=seconds, code=code, line=line)
    figure = results.best_figure(ledger, trial)
    if state == "finished" and not figure:
        results.rank_trials(ledger)  # raises when no trial logs the target
    reason = f" ({line})" if line else ""
    value = f", {plan.settings.target} {figure[0]:.6g} at epoch {figure[1]:.4g}" if figure else ""
    say(f"{_count(plan, ledger)} {trial.name}: {state}{reason} after {clock(seconds)}{value}")


def _count(plan: SweepPlan, ledger: Ledger) -> str:
    return f"[{len(ledger.trials('finished', 'failed'))}/{plan.total}]"
