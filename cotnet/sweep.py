"""`python -m cotnet.sweep FOLDER`: the results of a sweep so far, whether it runs or not."""

import argparse
import os
import sys
from pathlib import Path

from cotnet.commands.program import one_line
from cotnet.sweeps.command import compose_plan
from cotnet.sweeps.export import export
from cotnet.sweeps.results import show


def main() -> None:
    """Print the table and draw the plot of each folder, or write a sweep for W&B."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.sweep", description=__doc__)
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the sweep of these overrides for W&B")
    parser.add_argument("words", nargs="+", metavar="FOLDER | OVERRIDE")
    arguments = parser.parse_args()
    with one_line(keep=False):
        if arguments.export:
            export(arguments.export, compose_plan(arguments.words))
            return
        try:
            for folder in arguments.words:
                show(Path(folder))
        except BrokenPipeError:  # its reader, head or less, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
