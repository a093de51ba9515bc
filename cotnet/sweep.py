"""`python -m cotnet.sweep FOLDER`: what a sweep has come to so far, whether it runs or not."""

import argparse
import os
import sys
from pathlib import Path

from cotnet.commands.program import one_line


def main() -> None:
    """Print the table and draw the plot of a sweep's folder."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.sweep", description=__doc__)
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the sweep of these overrides for W&B")
    parser.add_argument("words", nargs="+", metavar="FOLDER | OVERRIDE")
    arguments = parser.parse_args()
    with one_line(keep=False):
        if arguments.export:
            from cotnet.sweeps.command import wandb_file

            wandb_file(arguments.export, arguments.words)
            return
        from cotnet.sweeps.results import show

        try:
            for folder in arguments.words:
                show(Path(folder))
        except BrokenPipeError:  # its reader, head or less, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
