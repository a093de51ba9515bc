"""Run a sweep: which trials are left, several at a time, and what became of each.

On this machine each trial is a process, on its share of the GPUs or cores.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cotnet.config.claims import claimed
from cotnet.config.continuing import names_run
from cotnet.engine.signals import end_with_parent, stop_request
from cotnet.errors import INTERRUPTED, InputError
from cotnet.files import in_use
from cotnet.reporting.terminal import clock, say
from cotnet.sweeps import results
from cotnet.sweeps.ledger import Ledger, TrialState
from cotnet.sweeps.search import propose
from cotnet.sweeps.space import SweepPlan, Trial, grid, name_trials, quoted

POLL_SECONDS, DRAW_SECONDS = 0.2, 1.0
Batch = Callable[[list[list[str]]], list[int]]  # runs jobs, each a list of overrides, and gives their exit codes
LOG = "log.txt"
GROUP = "WANDB_RUN_GROUP"  # W&B shows the trials of a sweep as one group, unless the person names another
HELD_SECONDS = 120.0  # how long a killed sweep's run may still hold its folder: it finishes a step and saves


class Share(NamedTuple):
    """What one trial may use: GPUs, named as in CUDA_VISIBLE_DEVICES, and cores."""

    gpus: tuple[str, ...]
    cores: frozenset[int]


def shares(parallel: int, gpus: Sequence[str], cores: Sequence[int]) -> list[Share]:
    """Equal shares of the GPUs, or of the cores on a machine without. Raises InputError if there are too few."""
    count, noun = (len(gpus), "GPUs are visible") if gpus else (len(cores), "cores may be used")
    if parallel > count:
        raise InputError(f"sweep.parallel={parallel} but {count} {noun}; use at most {count}")
    each = count // parallel
    parts = [slice(i * each, (i + 1) * each) for i in range(parallel)]
    return [Share(tuple(gpus[part]), frozenset(cores if gpus else cores[part])) for part in parts]


class TrialProcess:
    """A running trial; its output is appended to its folder's log. It saves and ends when the sweep's process ends."""

    def __init__(self, trial: Trial, command: Sequence[str], folder: Path, share: Share) -> None:
        self.trial, self.folder, self.share, self._started = trial, folder, share, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        deadline = self._started + HELD_SECONDS
        while in_use(folder / ".lock") and time.monotonic() < deadline:  # after that the run reports it
            time.sleep(0.1)
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if share.gpus else {}
        grouped = {GROUP: os.environ.get(GROUP) or folder.parent.name}
        parent = os.getpid()

        def prepare() -> None:
            end_with_parent(parent, signal.SIGTERM)
            os.sched_setaffinity(0, share.cores)

        with (folder / LOG).open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **gpus, **grouped},
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which forwards it once
                preexec_fn=prepare,  # noqa: PLW1509 - this process has no other thread that could hold a lock
            )

    @property
    def seconds(self) -> float:
        """Since it started."""
        return time.monotonic() - self._started

    def last_line(self) -> str:
        """The last error line of this start's log, or its last line."""
        with (self.folder / LOG).open("rb") as log:
            log.seek(self._log_start)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or ["(no output)"])[-1][:400]


def outcome(code: int) -> tuple[TrialState, str]:
    """The state that an exit code means, and the signal. A killed run continues from its checkpoint next time."""
    if code >= 0:
        return ("finished" if code == 0 else "interrupted" if code == INTERRUPTED else "failed"), ""
    hint = " (often because memory ran out)" if code == -signal.SIGKILL else ""
    return "interrupted", f"killed by {signal.Signals(-code).name}{hint}"


def run_sweep(plan: SweepPlan, program: Path, *, flags: Sequence[str], batch: Batch | None) -> int:
    """Run what is left of a sweep and show its results; the exit code: 0 if all is done, 1 if a trial failed, 75 if the
    sweep or a trial was interrupted. Trials are processes `python program flags overrides` on this machine, or jobs of
    the launcher `batch`. Raises InputError for a wrong plan, and when no trial logs the target."""
    settings = plan.settings
    # Too few devices raise before the folder becomes this sweep's.
    named, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    gpus = named.split(",")[:count] if named else [str(index) for index in range(count)]
    free = [] if batch else shares(settings.parallel, gpus, sorted(os.sched_getaffinity(0)))
    start = {"program": program.name, "flags": list(flags), "shared": plan.shared}
    with claimed(plan.folder):
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
    """Run trials as processes, one on each free share; whether a signal stopped the sweep. After an error their state
    stays "started": they save and end with this process, and continue next time."""
    trials = trials_left(plan, ledger)
    running: list[TrialProcess] = []
    handled, drawn = 0, 0.0
    with stop_request(lambda _received: None) as stop, results.live_bars() as live:
        while True:
            while free and not stop.received and (trial := next(trials, None)):
                words = [*command, *overrides(plan, trial)]
                running.append(TrialProcess(trial, words, plan.folder / trial.name, free.pop(0)))
            if not running:
                return stop.received
            if len(stop.signals) > handled:
                handled = len(stop.signals)
                _stop(running, stop.signals)
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
    os.environ[GROUP] = os.environ.get(GROUP) or plan.folder.name  # launchers pass the environment on
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
    """Record and say how a trial ended. Raises InputError if it finished and no trial logs the target."""
    state, killed = outcome(code)
    line = last_line if state == "failed" else killed
    ledger.record(trial, state, seconds=seconds, code=code, line=line)
    figure = results.best_figure(ledger, trial)
    if state == "finished" and not figure:
        results.rank_trials(ledger)  # raises when no trial logs the target
    reason = f" ({line})" if line else ""
    value = f", {plan.settings.target} {figure[0]:.6g} at epoch {figure[1]:.4g}" if figure else ""
    say(f"{_count(plan, ledger)} {trial.name}: {state}{reason} after {clock(seconds)}{value}")


def _count(plan: SweepPlan, ledger: Ledger) -> str:
    return f"[{len(ledger.trials('finished', 'failed'))}/{plan.total}]"
