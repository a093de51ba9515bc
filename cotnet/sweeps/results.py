"""What a person sees of a sweep: bars of running trials, a table, a plot, the command that runs the best one longer."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cotnet import records
from cotnet.config.build import nearest
from cotnet.config.compose import read_yaml
from cotnet.errors import InputError
from cotnet.figures import BLUE, GREY, GRID, RED, figure
from cotnet.files import in_use
from cotnet.reporting.terminal import clock, print_table, say
from cotnet.sweeps.ledger import Ledger, TrialRecord
from cotnet.sweeps.space import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT, METRICS = "sweep.png", "metrics.jsonl"
BAR = 10  # columns
LONGER = 3  # times the epochs, in the command that is shown


class TrialResult(NamedTuple):
    """The best value of the target that a trial logged, and its epoch; None if it logged none."""

    entry: TrialRecord
    value: float | None = None
    epoch: float | None = None


def best_figure(ledger: Ledger, trial: Trial) -> tuple[float, float] | tuple[()]:
    """The best value of the target in a trial's metrics.jsonl, and its epoch; empty if it logged none."""
    target, choose = ledger.start["target"], max if ledger.start["direction"] == "maximize" else min
    rows = records.read_existing(ledger.folder / trial.name / METRICS)
    found = [(row[target], row["epoch"]) for row in rows if row.get(target) is not None]
    return choose(found, key=lambda pair: pair[0], default=())


def rank_trials(ledger: Ledger) -> list[TrialResult]:
    """Every trial, the best first, those without a value last. Raises InputError if trials have finished and none of
    them logs the target."""
    target, sign = ledger.start["target"], -1 if ledger.start["direction"] == "maximize" else 1
    rows = [TrialResult(entry, *best_figure(ledger, entry.trial)) for entry in ledger.entries.values()]
    finished = [ledger.folder / trial.name / METRICS for trial in ledger.trials("finished")]
    if finished and all(row.value is None for row in rows):
        names = {key for path in finished for row in records.read_existing(path) for key in row}
        if target not in names:
            near = nearest(target, names - {"step", "epoch"})
            raise InputError(f"sweep.target={target} is logged by no trial; {near}")
    return sorted(rows, key=lambda row: (row.value is None, sign * (row.value or 0.0)))


def show(folder: Path) -> None:
    """Print the table and the best trial's command, and draw the plot. Errors as in `Ledger.read` and `rank_trials`."""
    ledger = Ledger.read(folder)
    rows = rank_trials(ledger)
    print_results(ledger, rows, alive=in_use(folder / ".lock"))
    scored = [row for row in rows if row.value is not None and row.entry.state == "finished"]
    if not scored:
        return
    best = scored[0].entry.trial
    if best.overrides:
        draw(folder / PLOT, ledger.start["target"], scored)
    say(f"best: {best.name}; to run it longer:\n  {longer_command(ledger, best)}")
    say(f"{folder}: a folder per trial, ledger.jsonl{', ' + PLOT if best.overrides else ''}")


def longer_command(ledger: Ledger, trial: Trial) -> str:
    """The command that runs a trial's settings for LONGER times as many epochs."""
    epochs = read_yaml(ledger.folder / trial.name / "config.yaml")["train"]["epochs"]
    given = [*ledger.start["shared"], *trial.overrides]
    kept = [override for override in given if not override.startswith(("train.epochs=", "train.max_steps="))]
    words = [ledger.start["program"], *ledger.start["flags"], *kept, f"train.epochs={LONGER * epochs}"]
    return f"python {shlex.join(words)}"


def print_results(ledger: Ledger, rows: Sequence[TrialResult], *, alive: bool) -> None:
    """Print a line per trial. A trial that started and did not end runs if the folder is `alive`, or was killed. On a
    terminal settings are named without their groups, where that is clear, and the folders are left out."""
    keys = list(dict.fromkeys(key for row in rows for key in row.entry.trial.settings))
    short = [key.rpartition(".")[2] for key in keys]
    terminal, lines = sys.stdout.isatty(), []
    for entry, value, epoch in rows:
        state = ("running" if alive else "killed") if entry.state == "started" else entry.state
        settings = [entry.trial.settings.get(key, "-") for key in keys]
        numbers = [_number(value, ".6g"), _number(epoch, ".4g"), *settings, clock(entry.seconds)]
        status = f"{state}: {entry.line}" if entry.line else state
        lines.append([*numbers, status, *([] if terminal else [entry.trial.name])])
    named = short if terminal and len(set(short)) == len(keys) else keys
    headings = [ledger.start["target"], "epoch", *named, "time", "status", *([] if terminal else ["trial"])]
    print_table(headings, lines, texts=("status", "trial"))


def print_evaluations(codes: Mapping[Path, int]) -> None:
    """Print a line per evaluation, the best top-1 first, from the folders and their exit codes."""
    forms, lines = (("top1", ".2f"), ("top5", ".2f"), ("images_per_second", ",.0f")), []
    for folder, code in codes.items():
        found = {} if code else json.loads((folder / "metrics.json").read_text())
        cells = [_number(found.get(key), form) for key, form in forms]
        lines.append((-found.get("top1", -1.0), [*cells, "failed" if code else "finished", str(folder)]))
    headings = ("top-1 %", "top-5 %", "images/s", "status", "folder")
    print_table(headings, [cells for _, cells in sorted(lines)], texts=headings[3:])


def draw(png: Path, target: str, rows: Sequence[TrialResult]) -> "Figure":
    """Draw the target against each setting that varies, the first row's in red; replaces `png` whole."""
    rows = rows[::-1]  # the best one on top of the others
    settings, values = [row.entry.trial.settings for row in rows], [row.value for row in rows if row.value is not None]
    keys = [key for key in settings[0] if len({given.get(key) for given in settings}) > 1] or list(settings[0])
    columns, lines = min(len(keys), 3), -(-len(keys) // 3)
    with figure(png, (1 + 3.8 * columns, 0.6 + 3.2 * lines), rows=lines, columns=columns) as (drawn, panels):
        for axes in panels[len(keys) :]:
            axes.remove()
        for index, (key, axes) in enumerate(zip(keys, panels, strict=False)):
            x: list[Any] = [given.get(key, "-") for given in settings]
            with contextlib.suppress(ValueError):  # some are no numbers: each text has its place
                x = [float(text) for text in x]
                axes.set_xscale("log" if min(x) > 0 and max(x) / min(x) > 20 else "linear")
            axes.scatter(x, values, color=[BLUE] * (len(rows) - 1) + [RED])
            axes.set_xlabel(key, color=GREY)
            axes.set_ylabel(target if index % columns == 0 else "")
            axes.grid(color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
        drawn.suptitle(f"{png.absolute().parent.name}   {len(rows)} trials", fontsize=11, x=0.01, ha="left")
    return drawn


def live_bars() -> contextlib.AbstractContextManager[Live | None]:
    """The part of the terminal below the lines, for `bars`; None where there is no terminal."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not (sys.stdout.isatty() and console.is_interactive):
        return contextlib.nullcontext()
    return Live(console=console, transient=True, auto_refresh=False)  # refreshing needs a thread, and we fork


def bars(running: Iterable[tuple[Trial, Path]], target: str, *, width: int) -> Table:
    """A line per trial and its folder: settings without their groups, a bar, the last figures."""
    table = Table.grid(padding=(0, 1))
    table.width = width - 4  # a terminal prints ^C behind the last line, which must not break it
    table.add_column(no_wrap=True, ratio=1)
    for trial, folder in running:
        share, figures = progress(folder, target)
        settings = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in trial.settings.items())
        table.add_row(Text(settings), ProgressBar(total=1.0, completed=share, width=BAR), Text(figures))
    return table


def progress(folder: Path, target: str) -> tuple[float, str]:
    """How far a run is, from 0 to 1, and its last figures."""
    rows = records.read_existing(folder / METRICS)
    last = {key: value for row in rows for key, value in row.items() if value is not None}
    if not last or not (folder / "config.yaml").exists():
        return 0.0, "starting"
    train = read_yaml(folder / "config.yaml")["train"]
    share = max(last["epoch"] / train["epochs"], last["step"] / (train["max_steps"] or float("inf")))
    figures = [f"{key.rpartition('/')[2]} {last[key]:.4g}" for key in ("train/loss", target) if key in last]
    return share, "  ".join([f"epoch {last['epoch']:.3g}/{train['epochs']}", *figures])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
