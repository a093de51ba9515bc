"""Write report.html: `python -m cotnet.report FOLDER...`.

For the folder of a run, an evaluation, a comparison or a sweep: the page of it, in that folder, also while it runs.
For several folders, or one that holds several: a leaderboard of all runs and evaluations below them, as a page in the
folder that holds them all and as a table on the terminal. A page is one file that needs no network.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cotnet.commands.program import one_line
from cotnet.errors import InputError
from cotnet.pages.folders import pages_of, write_reports
from cotnet.pages.leaderboard import entries, find, leaderboard_page, print_leaderboard
from cotnet.pages.write import REPORT, require_extra, write_page
from cotnet.reporting.terminal import say


def report(folders: Sequence[Path], out: Path | None) -> None:
    """Writes the page of one result, or the leaderboard of several. Raises InputError if there is none."""
    if len(folders) == 1 and pages_of(folders[0]):
        for path in write_reports(folders[0]):
            say(f"-> {path}")
        return
    if not (found := find(folders)):
        named = ", ".join(map(str, folders[:3]))
        raise InputError(f"{named}: no run, evaluation, comparison or sweep; give an output_dir")
    rows, damaged = entries(found)
    for line in damaged:
        say(f"left out: {line}")
    base = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    path = out or (base.parent if pages_of(base) else base) / REPORT  # never in place of a run's own page
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(leaderboard_page(rows, path.absolute().parent), path)
    with contextlib.suppress(BrokenPipeError):
        print_leaderboard(rows)
    say(f"-> {os.path.relpath(path)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page; exits with 2 and one line where there is nothing to report."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.report", description="Write report.html.")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="output_dir of a run, an evaluation, ..."
    )
    parser.add_argument("--out", type=Path, help=f"file of a leaderboard ({REPORT} in the folder that holds them all)")
    parser.add_argument("--live", type=float, metavar="SECONDS", help="write it again so often, until Ctrl-C")
    given = parser.parse_args(arguments)
    with one_line(keep=False):
        require_extra()
        if absent := [path for path in given.folders if not path.exists()]:
            raise InputError(f"{absent[0]} does not exist; give an output_dir")
        folders = [path for path in given.folders if path.is_dir()]  # outputs/* also names files
        if not folders:
            raise InputError(f"{given.folders[0]} is a file; give an output_dir")
        report(folders, given.out)
        while given.live:
            time.sleep(given.live)
            report(folders, given.out)
    sys.exit(0)


if __name__ == "__main__":
    main()
