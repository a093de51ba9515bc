"""What the person who started a run sees: a bar on a terminal, plain lines everywhere, a table after a sweep."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

Record = Mapping[str, Any]


def say(line: str) -> None:
    """One line on the standard output; above the bar while there is one."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Progress:
    """A bar over the steps of an epoch with the last figures and the time left for the whole run; a line per epoch.

    The bar needs `enabled` and a terminal; lines are printed always. Steps are optimizer steps. The time left assumes
    that this process goes on at the pace it had since its first step, evaluations and checkpoints included.
    """

    def __init__(self, total_steps: int, *, enabled: bool) -> None:
        self._total, self._step, self._end, self._epochs = total_steps, 0, 0, 0
        self._figures = ""
        self._first: tuple[float, int] | None = None  # when this process had done its first step, and which it was
        self._bar: Bar | None = None
        console = Console(highlight=False)
        if enabled and sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
            figures = TextColumn("{task.fields[figures]}")
            self._bar = Bar(*columns, figures, console=console, transient=True, refresh_per_second=4, expand=True)
            self._task = self._bar.add_task("", total=None, visible=False, figures="")

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Epoch `epoch` (from 0) of `epochs` begins with `done` of its `steps` already behind it."""
        self._step, self._end, self._epochs = epoch * steps + done, (epoch + 1) * steps, epochs
        if self._bar:
            self._bar.start()
            self._bar.reset(
                self._task, total=steps, completed=done, visible=True, description=f"epoch {epoch + 1}/{epochs}"
            )

    def advance(
        self, loss: float | None = None, images_per_second: float | None = None, data_wait: float | None = None
    ) -> None:
        """One step is done; figures as in `figures`, where there are new ones."""
        self._step += 1
        self._first = self._first or (time.monotonic(), self._step)
        if loss is not None and images_per_second is not None and data_wait is not None:
            self.figures(loss, images_per_second, data_wait)
        if self._bar:
            figures = "evaluating  " if self._step == self._end else self._figures
            self._bar.update(self._task, advance=1, figures=f"{figures}{self._left()}")

    def figures(self, loss: float, images_per_second: float, data_wait: float) -> None:
        """What the bar shows from the next step on; `data_wait` is a share, 0 to 1."""
        self._figures = f"loss {loss:.4f}  {images_per_second:,.0f} images/s  wait {data_wait:.0%}  "

    def note(self, line: str) -> None:
        """A line of text, above the bar while there is one."""
        say(line)

    def epoch_line(self, record_train: Record, record_val: Record, seconds: float) -> None:
        """One line about the epoch that was just evaluated, from the last record of each kind (there may be none of
        training yet) and the seconds it took.
        """
        epoch = f"{record_val['epoch']:.4g}"
        parts = [f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"]
        if record_train:
            parts.append(f"loss {record_train['train/loss']:.4f}")
        parts.append(f"val loss {record_val['val/loss']:.4f}")
        for name in ("top1", "top5"):
            ema = record_val.get(f"val/{name}_ema")
            averaged = "" if ema is None else f" (EMA {ema:.2f})"
            parts.append(f"{name.replace('top', 'top-')} {record_val[f'val/{name}']:.2f}{averaged}")
        if record_train:
            parts.append(f"lr {record_train['train/lr']:.3g}")
            parts.append(f"{record_train['train/images_per_second']:,.0f} images/s")
            parts.append(f"wait {record_train['train/data_wait']:.0%}")
        self.note("  ".join([*parts, clock(seconds)]))

    def close(self) -> None:
        """Takes the bar away and gives the terminal back."""
        if self._bar:
            self._bar.stop()

    def _left(self) -> str:
        if not self._first or self._step == self._first[1]:
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


def results_table(rows: Iterable[Record]) -> None:
    """Prints one line per run, the best top-1 first, runs without one last.

    A row has `run` (its overrides) and `folder`, and what its summary.json holds: `status`, `best_top1`, `best_top5`,
    `best_epoch`, `images_per_second`. What is absent or None shows as a dash.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("run", "status", "top-1 %", "top-5 %", "epoch", "images/s", "folder"):
        number = heading in ("top-1 %", "top-5 %", "epoch", "images/s")
        table.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in sorted(rows, key=lambda row: -(row.get("best_top1") or -1.0)):
        texts = [str(row.get(key) or "-") for key in ("run", "status")]
        numbers = (("best_top1", ".2f"), ("best_top5", ".2f"), ("best_epoch", ".4g"), ("images_per_second", ",.0f"))
        for key, form in numbers:
            value = row.get(key)
            texts.append("-" if value is None else f"{value:{form}}")
        table.add_row(*texts, str(row.get("folder") or "-"))
    width = None if sys.stdout.isatty() else 400  # in a file there is nothing to fit in: no row is folded
    Console(width=width, highlight=False, markup=False).print(table)
