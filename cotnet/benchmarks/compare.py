"""Which of several trained models is ahead, and how sure that is:

`python -m cotnet.benchmarks.compare --runs NAME RUN [RUN ...] --runs NAME RUN ... [--speed NAME IMAGES_PER_SECOND]`

A RUN is a run folder or its metrics.jsonl; the runs of a name differ in their seed. The figure is the top-1 of the
averaged weights after the last epoch: the best epoch would be chosen by the images that judge. All are compared with
the first name. With --speed, a model's images per second in training on an idle machine, curves are also drawn against
the minutes of training.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cotnet import records
from cotnet.benchmarks import common
from cotnet.commands.program import one_line
from cotnet.errors import InputError
from cotnet.figures import figure

TOP1 = "val/top1_ema"


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """The runs of one name: their validation records, and the images per second on an idle machine if given."""

    name: str
    runs: list[list[dict[str, Any]]]
    speed: float | None

    @property
    def last(self) -> list[float]:
        """The top-1 of each run after its last epoch, in percent."""
        return [run[-1][TOP1] for run in self.runs]


def half_interval(groups: Sequence[RunGroup], images: int) -> tuple[float, str]:
    """Half the 95 % interval of a group's mean top-1, or of the difference of two groups, and what varies in it.

    Seeds: with at least two runs of each, by Student's t with a common variance. Otherwise the test images, by the
    binomial distribution; for a difference as if the images were not the same, so the interval is rather too wide.
    """
    if all(len(group.runs) > 1 for group in groups):
        try:
            from scipy.stats import ttest_1samp, ttest_ind
        except ModuleNotFoundError as error:
            raise InputError("an interval over seeds needs scipy, which is missing; pip install scipy") from error
        samples = [group.last for group in groups]
        test = ttest_ind(*samples) if len(samples) == 2 else ttest_1samp(*samples, popmean=0)
        low, high = test.confidence_interval(0.95)
        return float(high - low) / 2, "seeds"
    shares = [fmean(group.last) / 100 for group in groups]
    return 196 * math.sqrt(sum(share * (1 - share) / images for share in shares)), "images"


def comparison(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """A row per group; differences are to the first."""
    first, rows = groups[0], []
    for group in groups:
        end, mean = group.runs[0][-1], fmean(group.last)
        row = {"name": group.name, "runs": len(group.runs), "epochs": end["epoch"], "top1": mean}
        row["±"], row["over"] = half_interval([group], end["val/images"])
        row["minutes"] = end["images"] / group.speed / 60 if group.speed else None
        if group is not first:
            row["difference"] = mean - fmean(first.last)
            row["± of it"], row["over"] = half_interval([group, first], end["val/images"])
        rows.append(row)
    return rows


def draw(png: Path, groups: Sequence[RunGroup]) -> None:
    """Top-1 against the epoch, a line per run, and against minutes of training where all speeds are known."""
    timed = all(group.speed for group in groups)
    with figure(png, (10 if timed else 6, 4), columns=1 + timed, sharey=True) as (_, panels):
        for number, group in enumerate(groups):
            for index, run in enumerate(group.runs):
                label, top1 = None if index else group.name, [row[TOP1] for row in run]
                ways = [[row["epoch"] for row in run], [row["images"] / (group.speed or 1) / 60 for row in run]]
                for axes, x in zip(panels, ways, strict=False):
                    axes.plot(x, top1, f"C{number}.-", label=label, linewidth=1.2, markersize=4)
        lowest = min(value for group in groups for value in group.last)
        panels[-1].set_xlabel("minutes of training on an idle machine")
        panels[0].set(xlabel="epoch", ylabel="top-1 of the averaged weights, %", ylim=(lowest - 5, None))
        panels[0].legend(frameon=False, fontsize=9)
        for axes in panels:
            axes.grid(color="0.9")


def read_run(path: Path, batch: int) -> list[dict[str, Any]]:
    """The validation records, each with the number of `images` trained on before it."""
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: no such file; give run folders or their metrics.jsonl")
    found = [{**row, "images": row["step"] * batch} for row in records.read(path) if row.get(TOP1) is not None]
    if not found:
        raise InputError(f"{path} holds no {TOP1}; give a run with an epoch behind it")
    return found


def read_groups(given: argparse.Namespace) -> list[RunGroup]:
    """The groups of the command line; InputError for what does not fit together."""
    groups, speeds = [], dict(given.speed)
    names = [name for name, *_ in given.runs]
    for name, rate in speeds.items():
        if name not in names:
            raise InputError(f"--speed {name}: no --runs of this name; there are {', '.join(names)}")
        if not rate.replace(".", "", 1).isdigit() or not float(rate):
            raise InputError(f"--speed {name} {rate}: not a number of images per second")
    for name, *paths in given.runs:
        if not paths:
            raise InputError(f"--runs {name}: no runs; give NAME and run folders or metrics.jsonl files")
        runs = [read_run(Path(path), given.batch_size) for path in paths]
        if len({run[-1]["epoch"] for run in runs}) > 1:
            raise InputError(f"--runs {name}: runs of different lengths; give those as another name")
        groups.append(RunGroup(name=name, runs=runs, speed=float(speeds[name]) if name in speeds else None))
    return groups


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and draw the curves; exits with 2 and one line for wrong runs."""
    parser = common.options("compare", "Which model is ahead.")
    parser.add_argument("--runs", nargs="+", action="append", required=True, metavar=("NAME", "RUN"))
    parser.add_argument("--speed", nargs=2, action="append", default=[], metavar=("NAME", "IMAGES_PER_SECOND"))
    parser.add_argument("--batch-size", type=int, default=128, help="images per step of these runs (%(default)s)")
    given = parser.parse_args(arguments)
    with one_line(keep=False):
        groups = read_groups(given)
        rows = comparison(groups)
    common.finish(rows, given.json)
    if given.plot:
        draw(given.plot, groups)


if __name__ == "__main__":
    main()
