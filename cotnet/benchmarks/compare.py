"""Which of several trained models is ahead, and how sure that is:

`python -m cotnet.benchmarks.compare --runs NAME RUN [RUN ...] --runs NAME RUN ... [--speed NAME IMAGES_PER_SECOND]`

A RUN is a run folder or its metrics.jsonl; the runs of a name differ in their seed. Compared is the top-1 after the
last epoch, of the averaged weights: choosing the best epoch would be choosing by the images that judge. The first name
is what the others are compared with. With --speed, the images per second that a model trains on an idle machine, curves
are also drawn against the time that the training takes there.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cotnet import records
from cotnet.benchmarks import report
from cotnet.errors import InputError

TOP1 = "val/top1_ema"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one name: their validation records, the images of an epoch, and images/s on an idle machine."""

    name: str
    runs: list[list[dict[str, Any]]]
    speed: float | None

    @property
    def last(self) -> list[float]:
        """The top-1 of each run after its last epoch, in percent."""
        return [run[-1][TOP1] for run in self.runs]


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by integrating its density."""
    at = np.linspace(0, 40, 400_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = scale * (1 + at**2 / freedom) ** (-(freedom + 1) / 2)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(at))])
    return float(np.interp(0.475, below, at))


def interval(groups: Sequence[Group], images: int) -> tuple[float, str]:
    """Half the 95 % interval of a group's mean top-1, or of the difference of two, and what varies in it.

    With at least two runs of each: the seeds, by Student's t with a common variance. Otherwise the test images, by the
    binomial distribution; for a difference as if each model had images of its own, so it is too wide rather than too
    narrow.
    """
    if all(len(group.runs) > 1 for group in groups):
        freedom = sum(len(group.runs) - 1 for group in groups)
        squares = sum((value - fmean(group.last)) ** 2 for group in groups for value in group.last)
        spread = math.sqrt(squares / freedom * sum(1 / len(group.runs) for group in groups))
        return t_quantile(freedom) * spread, "seeds"
    shares = [fmean(group.last) / 100 for group in groups]
    return 196 * math.sqrt(sum(share * (1 - share) / images for share in shares)), "images"


def table(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row per group; the differences are to the first."""
    first, rows = groups[0], []
    for group in groups:
        end = group.runs[0][-1]
        half, over = interval([group], end["val/images"])
        row = {
            "name": group.name,
            "runs": len(group.runs),
            "epochs": end["epoch"],
            "top1": fmean(group.last),
            "±": half,
            "over": over,
            "minutes": None if group.speed is None else end["images"] / group.speed / 60,
        }
        if group is not first:
            row["difference"] = fmean(group.last) - fmean(first.last)
            row["± of it"], row["over"] = interval([group, first], end["val/images"])
        rows.append(row)
    return rows


def draw(path: Path, groups: Sequence[Group]) -> None:
    """Top-1 against the epoch, a line per run, and against minutes on an idle machine where all speeds are known."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = all(group.speed for group in groups)
    figure = Figure(figsize=(10 if timed else 6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if timed else 1, squeeze=False, sharey=True)[0]
    for number, group in enumerate(groups):
        for index, run in enumerate(group.runs):
            top1 = [row[TOP1] for row in run]
            look: dict[str, Any] = {"color": f"C{number}", "linewidth": 1.2, "marker": ".", "markersize": 4}
            panels[0].plot([row["epoch"] for row in run], top1, label=None if index else group.name, **look)
            if timed:
                panels[1].plot([row["images"] / (group.speed or 1) / 60 for row in run], top1, **look)
    panels[0].set_xlabel("epoch")
    panels[0].set_ylabel("top-1 of the averaged weights, %")
    panels[0].set_ylim(bottom=min(value for group in groups for value in group.last) - 5)
    panels[0].legend(frameon=False, fontsize=9)
    panels[-1].set_xlabel("minutes of training on an idle machine" if timed else "epoch")
    for axes in panels:
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def read_run(path: Path, batch: int) -> list[dict[str, Any]]:
    """The validation records, with the `images` trained until each."""
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file; give run folders or their metrics.jsonl")
    found = [{**row, "images": row["step"] * batch} for row in records.read(path) if row.get(TOP1) is not None]
    if not found:
        raise InputError(f"{path} holds no {TOP1}; give a run with an epoch behind it")
    return found


def read_groups(given: argparse.Namespace) -> list[Group]:
    """The groups as named on the command line; InputError for what does not fit together."""
    speeds = {name: _positive(name, rate) for name, rate in given.speed}
    names = [name for name, *_ in given.runs]
    if unknown := sorted(set(speeds) - set(names)):
        raise InputError(f"--speed {unknown[0]}: no --runs of this name; there are {', '.join(names)}")
    groups = []
    for name, *paths in given.runs:
        if not paths:
            raise InputError(f"--runs {name}: no runs; give NAME and run folders or metrics.jsonl files")
        runs = [read_run(Path(path), given.batch_size) for path in paths]
        if len({run[-1]["epoch"] for run in runs}) > 1:
            raise InputError(f"--runs {name}: runs of different lengths; give those as another name")
        groups.append(Group(name=name, runs=runs, speed=speeds.get(name)))
    return groups


def _positive(name: str, rate: str) -> float:
    try:
        speed = float(rate)
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise InputError(f"--speed {name} {rate}: not a number of images per second")
    return speed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and draw the curves; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.benchmarks.compare", description="Which model is ahead.")
    parser.add_argument("--runs", nargs="+", action="append", required=True, metavar=("NAME", "RUN"))
    parser.add_argument("--speed", nargs=2, action="append", default=[], metavar=("NAME", "IMAGES_PER_SECOND"))
    parser.add_argument("--batch-size", type=int, default=128, help="images per step of these runs (%(default)s)")
    parser.add_argument("--plot", type=report.output_file, help="PNG to write")
    given = parser.parse_args(arguments)
    try:
        groups = read_groups(given)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    report.print_table(table(groups))
    if given.plot:
        draw(given.plot, groups)
    return 0


if __name__ == "__main__":
    sys.exit(main())
