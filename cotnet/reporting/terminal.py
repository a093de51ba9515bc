"""What the person who started a run sees: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from cotnet.headline import CLASSIFICATION, NAMES

Record = dict[str, Any]

WIDE = 400  # columns of a table in a file


def columns_of(ranking: tuple[str, str]) -> tuple[tuple[str, int, str, str], ...]:
    """Heading, width, figure and its format of each column of a run's table; 77 characters wide for a classifier."""
    columns = [("epoch", 9, "", ""), ("loss", 7, "train/loss", ".4f")]
    for name in ranking:
        columns.append((NAMES[name], max(6, len(NAMES[name])), f"val/{name}", ".2f"))
        columns.append(("EMA", 6, f"val/{name}_ema", ".2f"))
    columns += [("lr", 8, "train/lr", ".3g"), ("images/s", 8, "train/images_per_second", ",.0f")]
    return (*columns, ("wait", 4, "train/data_wait", ".0%"), ("time", 8, "", ""))


def say(line: str) -> None:
    """One line on the standard output; above the bar while there is one."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_table(headings: Sequence[str], lines: Iterable[Sequence[str]], *, texts: Collection[str]) -> None:
    """A table. The columns headed by `texts` are folded on a narrow terminal; the others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
    for heading in headings:
        text = heading in texts
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text, min_width=6, overflow="fold")
    for line in lines:
        table.add_row(*line)
    width = None if sys.stdout.isatty() else WIDE
    Console(width=width, highlight=False, markup=False).print("", table, "", sep="\n")


class _Live(Bar):
    """A bar below the table's last row, the one that still changes."""

    row = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield Text(self.row, no_wrap=True, overflow="crop")
        yield from super().get_renderables()


class Progress:
    """On a terminal, if `enabled`, a table: a row per epoch, the current one live above a bar over its steps; elsewhere
    a line per epoch. The time left for the whole run assumes the pace since this process's first step, evaluations and
    checkpoints included."""

    def __init__(self, total_steps: int, ranking: tuple[str, str] = CLASSIFICATION, *, enabled: bool) -> None:
        self._ranking, self._columns = ranking, columns_of(ranking)
        self._total, self._step, self._end, self._epoch, self._epochs = total_steps, 0, 0, 0, 0
        self._train: Record = {}
        self._began = 0.0
        self._first: tuple[float, int] | None = None  # when this process had done its first step, and which it was
        self._bar: _Live | None = None
        console = Console(highlight=False)
        if enabled and sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
            left = TextColumn("{task.fields[left]}")
            self._bar = _Live(*columns, left, console=console, transient=True, refresh_per_second=4, expand=True)
            self._task = self._bar.add_task("", total=None, visible=False, left="")

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Epoch `epoch` (from 0) of `epochs` begins with `done` of its `steps` already behind it."""
        self._step, self._end, self._epoch, self._epochs = epoch * steps + done, (epoch + 1) * steps, epoch + 1, epochs
        self._train, self._began = {}, time.monotonic()
        if self._bar:
            if not self._bar.live.is_started:
                say(" ".join(f"{name:>{width}}" for name, width, _, _ in self._columns))
                self._bar.start()
            name = f"epoch {self._epoch}/{epochs}"
            self._bar.row = self._row(self._epoch, {}, 0.0)
            self._bar.reset(self._task, total=steps, completed=done, visible=True, description=name)

    def advance(self) -> None:
        """One step is done."""
        self._step += 1
        self._first = self._first or (time.monotonic(), self._step)
        if self._bar:
            self._bar.row = self._row(self._epoch, {}, time.monotonic() - self._began)
            evaluating = "evaluating  " if self._step == self._end else ""
            self._bar.update(self._task, advance=1, left=f"{evaluating}{self._left()}")

    def figures(self, record: Record) -> None:
        """The training record that the epoch's row shows from the next step on."""
        self._train = record

    def epoch_line(self, record: Record, seconds: float) -> None:
        """The row or line of an epoch, from its evaluation's record and the last training record, if there is one."""
        if self._bar:
            say(self._row(record["epoch"], record, seconds))
            return
        train, val = self._train, {key.removeprefix("val/"): value for key, value in record.items()}
        parts = [f"epoch {format(val['epoch'], '.4g'):>{len(str(self._epochs))}}/{self._epochs}"]
        parts += [f"loss {train['train/loss']:.4f}"] if train else []
        parts += [f"val loss {val['loss']:.4f}"] if "loss" in val else []
        for name in self._ranking:
            averaged = f" (EMA {val[f'{name}_ema']:.2f})" if f"{name}_ema" in val else ""
            parts.append(f"{NAMES[name]} {val[name]:.2f}{averaged}")
        if train:
            speed = f"{train['train/images_per_second']:,.0f} images/s  wait {train['train/data_wait']:.0%}"
            parts.append(f"lr {train['train/lr']:.3g}  {speed}")
        say("  ".join([*parts, clock(seconds)]))

    def _row(self, epoch: float, record: Record, seconds: float) -> str:
        known = self._train | record
        shown = self._columns[1:-1]
        figures = [f"{known[key]:{form}}" if known.get(key) is not None else "" for _, _, key, form in shown]
        cells = [f"{epoch:.4g}/{self._epochs}", *figures, clock(seconds)]
        return " ".join(f"{cell:>{width}}" for cell, (_, width, _, _) in zip(cells, self._columns, strict=True))

    def close(self) -> None:
        """Takes the live part away and gives the terminal back."""
        if self._bar:
            self._bar.stop()

    def _left(self) -> str:
        if not self._first or self._step <= self._first[1]:  # a rollback goes back
            return ""
        started, first = self._first
        pace = (time.monotonic() - started) / (self._step - first)  # seconds a step
        return f"left {clock(pace * max(self._total - self._step, 0))}"


@contextmanager
def evaluation_bar(images: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A bar over this rank's share of the images, on a terminal; gives the function that moves it on."""
    columns = (TextColumn("evaluating"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(), transient=True, expand=True, disable=not enabled) as bar:
        task = bar.add_task("", total=images)
        yield lambda done: bar.advance(task, done)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
