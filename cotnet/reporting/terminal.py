"""What the person who started a run sees: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

Record = dict[str, Any]

COLUMNS = (  # of the table of a run, and how wide: 77 characters together
    *(("epoch", 9), ("loss", 7), ("top-1", 6), ("EMA", 6), ("top-5", 6), ("EMA", 6)),
    *(("lr", 8), ("images/s", 8), ("wait", 4), ("time", 8)),
)
FIGURES = {
    "train/loss": ".4f",
    "val/top1": ".2f",
    "val/top1_ema": ".2f",
    "val/top5": ".2f",
    "val/top5_ema": ".2f",
    "train/lr": ".3g",
    "train/images_per_second": ",.0f",
    "train/data_wait": ".0%",
}


def say(line: str) -> None:
    """One line on the standard output; above the bar while there is one."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class _Live(Bar):
    """A bar below the table's last row, the one that still changes."""

    row = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield Text(self.row, no_wrap=True, overflow="crop")
        yield from super().get_renderables()


class Progress:
    """On a terminal a table, a row per epoch, the current one live above a bar over its steps; elsewhere a line per
    epoch.

    The table needs `enabled` and a terminal. Its finished rows are ordinary lines: they scroll, and stay after the
    end. Steps are optimizer steps. The time left for the whole run assumes that this process goes on at the pace it
    had since its first step, evaluations and checkpoints included.
    """

    def __init__(self, total_steps: int, *, enabled: bool) -> None:
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
                say(" ".join(f"{name:>{width}}" for name, width in COLUMNS))
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

    def note(self, line: str) -> None:
        """A line of text, above the live row while there is one."""
        say(line)

    def epoch_line(self, record: Record, seconds: float) -> None:
        """The row or line of the epoch that was just evaluated, from its evaluation's record, its last training record
        (there may be none yet) and the seconds it took.
        """
        if self._bar:
            self.note(self._row(record["epoch"], record, seconds))
            return
        epoch = f"{record['epoch']:.4g}"
        parts = [f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"]
        if self._train:
            parts.append(f"loss {self._train['train/loss']:.4f}")
        parts.append(f"val loss {record['val/loss']:.4f}")
        for name in ("top1", "top5"):
            ema = record.get(f"val/{name}_ema")
            averaged = "" if ema is None else f" (EMA {ema:.2f})"
            parts.append(f"{name.replace('top', 'top-')} {record[f'val/{name}']:.2f}{averaged}")
        if self._train:
            parts.append(f"lr {self._train['train/lr']:.3g}")
            parts.append(f"{self._train['train/images_per_second']:,.0f} images/s")
            parts.append(f"wait {self._train['train/data_wait']:.0%}")
        self.note("  ".join([*parts, clock(seconds)]))

    def _row(self, epoch: float, record: Record, seconds: float) -> str:
        cells = [f"{epoch:.4g}/{self._epochs}"]
        for key, form in FIGURES.items():
            value = (self._train | record).get(key)
            cells.append("" if value is None else f"{value:{form}}")
        cells.append(clock(seconds))
        return " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))

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
