"""What a sweep came to: a table, a plot, importances, and the command that runs the best trial longer."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from cotnet import records
from cotnet.config.build import nearest
from cotnet.config.compose import read_yaml
from cotnet.errors import InputError
from cotnet.reporting.curves import BLUE, GREY, RED
from cotnet.reporting.terminal import clock, say
from cotnet.sweeps import search
from cotnet.sweeps.figures import best_figure, logged
from cotnet.sweeps.ledger import Entry, Ledger, in_use
from cotnet.sweeps.space import Parameter, Trial, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT = "sweep.png"
WIDE = 400  # columns of a table in a file
LONGER = 3  # times the epochs, in the command that is shown


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trial: its best figure, if it logged any, at which epoch; the rest is the ledger's."""

    entry: Entry
    value: float | None
    epoch: float | None
    folder: Path


def results(ledger: Ledger) -> list[Result]:
    """Every trial, the best first; those without a figure last.

    Raises InputError if trials have finished and none of them logs the target.
    """
    target, direction = ledger.start["target"], ledger.start["direction"]
    rows = []
    for entry in ledger.entries.values():
        folder = ledger.folder / entry.trial.name
        figure = best_figure(folder, target, direction)
        value, epoch = figure or (None, None)
        rows.append(Result(entry=entry, value=value, epoch=epoch, folder=folder))
    finished = [row.folder for row in rows if row.entry.state == "finished"]
    if finished and all(row.value is None for row in rows):
        names = {key for folder in finished for key in logged(folder)}
        if target not in names:
            raise InputError(
                f"sweep.target={target} is logged by no trial; {nearest(target, names - {'step', 'epoch'})}"
            )
    sign = -1 if direction == "maximize" else 1
    return sorted(rows, key=lambda row: (row.value is None, sign * (row.value or 0.0)))


def show(folder: Path) -> None:
    """Print the table, the importances and the best trial's command, and draw the plot.

    Raises InputError as `Ledger.read` and `results` do.
    """
    ledger = Ledger.read(folder)
    rows = results(ledger)
    alive = in_use(folder)
    print_table(ledger, rows, alive=alive)
    scored = [row for row in rows if row.value is not None and row.entry.state == "finished"]
    if not scored:
        return
    parameters = _parameters(ledger, [row.entry.trial for row in scored])
    values = [row.value for row in scored if row.value is not None]
    shares = search.importances([row.entry.trial for row in scored], values, parameters)
    if shares:
        say("importance (fANOVA): " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items()))
    if parameters:
        draw(folder / PLOT, ledger.start["target"], scored, parameters)
    say(f"best: {scored[0].entry.trial.name}; to run it longer:")
    say(f"  {longer(ledger, scored[0])}")
    say(f"{folder}: {'a folder per trial, ledger.jsonl' + (', ' + PLOT if parameters else '')}")


def _parameters(ledger: Ledger, trials: Sequence[Trial]) -> list[Parameter]:
    """What varied: the space that a search was given, or what a grid's trials have tried."""
    space = ledger.identity.get("space")
    return read(f"{key}={value}" for key, value in space.items())[1] if space else search.observed(trials)


def print_table(ledger: Ledger, rows: Sequence[Result], *, alive: bool) -> None:
    """One line a trial: its figure, its settings, what became of it, its folder.

    A terminal has the settings without their groups where that is clear, and folders only if they fit.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row.entry.trial.settings))
    lines = []
    for row in rows:
        entry = row.entry
        figures = ["-" if row.value is None else f"{row.value:.6g}", "-" if row.epoch is None else f"{row.epoch:.4g}"]
        settings = [entry.trial.settings.get(key, "-") for key in keys]
        lines.append([*figures, *settings, clock(entry.seconds), status(entry, alive=alive), entry.trial.name])
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else WIDE, highlight=False, markup=False)  # in a file no row is folded
    short = [key.rpartition(".")[2] for key in keys]
    headings = [
        ledger.start["target"],
        "epoch",
        *(short if terminal and len(set(short)) == len(keys) else keys),
        "time",
    ]
    table = _table(headings, ["status", "trial"], lines)
    if console.measure(table, options=console.options.update(width=WIDE)).maximum > console.width:
        table = _table(headings, ["status"], [line[:-1] for line in lines])
    console.print("", table, "", sep="\n")


def _table(numbers: Sequence[str], texts: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in texts:
        table.add_column(heading, min_width=10, overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def status(entry: Entry, *, alive: bool) -> str:
    """For a person; a trial that began and did not end runs, or was killed with its sweep."""
    name = {"started": "running" if alive else "killed"}.get(entry.state, entry.state)
    return f"{name}: {entry.line}" if entry.line else name


def longer(ledger: Ledger, best: Result) -> str:
    """A command line for the best trial's settings with more epochs, in a folder of its own."""
    epochs = read_yaml(best.folder / "config.yaml")["train"]["epochs"]
    given = [*ledger.start["shared"], *best.entry.trial.overrides]
    kept = [override for override in given if not override.startswith(("train.epochs=", "train.max_steps="))]
    words = [*kept, f"train.epochs={LONGER * epochs}"]
    return f"python {ledger.start['program']} {shlex.join([*ledger.start['flags'], *words])}"


def draw(png: Path, target: str, rows: Sequence[Result], parameters: Sequence[Parameter]) -> None:
    """The target against each setting, the best trial in red; replaces `png` whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(parameters), 3)
    lines = -(-len(parameters) // columns)
    figure = Figure(figsize=(1 + 3.8 * columns, 0.6 + 3.2 * lines), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for parameter, panel in zip(parameters, axes, strict=False):
        _draw_setting(panel, parameter, rows)
        panel.set_ylabel(target if panel in axes[::columns] else "")
    for panel in axes[len(parameters) :]:
        panel.set_visible(False)
    figure.suptitle(f"{png.absolute().parent.name}   {len(rows)} trials", fontsize=11, x=0.01, ha="left")
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    records.write_atomic(png, buffer.getvalue())


def _draw_setting(axes: "Axes", parameter: Parameter, rows: Sequence[Result]) -> None:
    texts = [row.entry.trial.settings[parameter.key] for row in rows]
    x: list[float] = [number for number in map(_number, texts) if number is not None]
    if len(x) == len(texts):
        spread = min(x) > 0 and max(x) / min(x) > 20
        axes.set_xscale("log" if parameter.log or spread else "linear")
        if len(set(x)) <= 6:  # few values: they are the ticks
            axes.set_xticks(sorted(set(x)), [f"{number:g}" for number in sorted(set(x))])
            axes.minorticks_off()
    else:
        names = [value for value in parameter.values if value in texts]
        x = [float(names.index(text)) for text in texts]
        turn, side = (25, "right") if sum(map(len, names)) > 30 else (0, "center")  # letters in a panel
        axes.set_xticks(range(len(names)), names, rotation=turn, ha=side)
        axes.set_xlim(-0.5, len(names) - 0.5)
    values = [row.value for row in rows if row.value is not None]
    axes.scatter(x[1:], values[1:], s=24, color=BLUE)
    axes.scatter(x[:1], values[:1], s=44, color=RED, zorder=3)
    axes.set_xlabel(parameter.key, color=GREY)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
