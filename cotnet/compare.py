"""Compare two evaluations of the same images: `python -m cotnet.compare A/predictions.csv B/predictions.csv`.

Prints the difference in top-1 with its 95 % interval and McNemar's exact p-value. Writes these and the images that
flipped in each direction to comparison.json beside A's table, or to `--out`. The interval is over images, not over
trainings.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cotnet import records
from cotnet.commands.program import one_line
from cotnet.evaluation import comparison, predictions
from cotnet.pages.folders import try_report
from cotnet.reporting.terminal import say


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare two tables; exits with 2 where they cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.compare", description="Compare two evaluations.")
    parser.add_argument("a", type=Path, help="predictions.csv of the first, or its folder")
    parser.add_argument("b", type=Path, help="predictions.csv of the second, or its folder")
    parser.add_argument("--out", type=Path, help="file to write (comparison.json beside A)")
    given = parser.parse_args(arguments)
    with one_line(keep=False):
        paths = [path / "predictions.csv" if path.is_dir() else path for path in (given.a, given.b)]
        a, b = (predictions.read(path) for path in paths)
        figures = comparison.compare(a, b, (str(given.a), str(given.b)))
        say(comparison.line(figures))
        out = given.out or paths[0].with_name("comparison.json")
        figures["folders"] = [str(path.parent.absolute()) for path in paths]
        records.write_json(out, {"comparisons": [figures]})
        say(f"-> {out}")
        if page := try_report(out.parent):
            say(f"to look at it: {page}")


if __name__ == "__main__":
    main()
