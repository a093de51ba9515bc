"""What one sees of a sweep while it runs: a line when a trial begins or ends, on a terminal a bar for each."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table

from cotnet.reporting.terminal import clock, say
from cotnet.sweeps.figures import progress
from cotnet.sweeps.ledger import Ledger, State
from cotnet.sweeps.space import SweepSettings, Trial

REFRESH_SECONDS = 1.0
BAR = 10  # columns


class _Bars(Progress):
    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        self._terminal = console
        super().__init__(*columns, console=console, transient=True, auto_refresh=False)  # no thread, since we fork

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        table = super().make_tasks_table(tasks)
        table.width = self._terminal.width - 4  # room for the ^C that a terminal shows: a full line would break there
        return table


class View:
    """The lines and bars of one start of a sweep of `total` trials."""

    def __init__(self, settings: SweepSettings, ledger: Ledger, total: int) -> None:
        self._target, self._ledger, self._total = settings.target, ledger, total
        console = Console(highlight=False)
        self._bars: Progress | None = None
        if sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal:
            name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
            columns = (name, BarColumn(BAR), TextColumn("{task.fields[figures]}"))
            self._bars = _Bars(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}
        self._drawn = 0.0
        states = [entry.state for entry in ledger.entries.values()]
        cut = states.count("started") + states.count("interrupted")
        again = " (sweep.retry=true runs those again)" if "failed" in states and not settings.retry else ""
        counts = f"{states.count('finished')} finished, {states.count('failed')} failed{again}, {cut} cut short"
        self.say(f"{ledger.folder}: of {total} trials {counts}; {settings.parallel} at a time")

    def __enter__(self) -> "View":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, line: str) -> None:
        """A line of text, above the bars while there are any."""
        if self._bars:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            say(line)

    def started(self, trial: Trial) -> None:
        """The ledger knows already."""
        self.say(f"[{self._count()}/{self._total}] {trial.name}: started")
        if self._bars:
            self._tasks[trial.name] = self._bars.add_task(in_short(trial), total=1.0, figures="starting")

    def ended(self, trial: Trial, state: State, line: str, figure: tuple[float, float] | None, seconds: float) -> None:
        """`figure`: the target's best value and its epoch."""
        if self._bars and trial.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(trial.name))
        value = f", {self._target} {figure[0]:.6g} at epoch {figure[1]:.4g}" if figure else ""
        reason = f" ({line})" if line else ""
        self.say(f"[{self._count()}/{self._total}] {trial.name}: {state}{reason} after {clock(seconds)}{value}")

    def refresh(self, running: Iterable[tuple[Trial, Path]]) -> None:
        """Draw how far the running trials are, at most once a second."""
        if not self._bars or time.monotonic() - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = time.monotonic()
        for trial, folder in running:
            done, figures = progress(folder, self._target)
            self._bars.update(self._tasks[trial.name], completed=done, figures=figures)
        self._bars.refresh()

    def _count(self) -> int:
        return sum(entry.state in ("finished", "failed") for entry in self._ledger.entries.values())


def in_short(trial: Trial) -> str:
    """Its settings without the groups that they are in: `lr=0.1 batch_size=64`."""
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in trial.settings.items())
