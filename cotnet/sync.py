"""Uploads the offline W&B runs below a folder: `python -m cotnet.sync [FOLDER]`, outputs/ without one.

Runs that were sent already are left out, and so are those that some process is still writing: they would count as sent.
"""

import fcntl
import sys
from pathlib import Path

from cotnet.config import one_line
from cotnet.engine.loggers import sent_mark, upload
from cotnet.engine.terminal import say
from cotnet.errors import InputError


def main() -> None:
    """Exit codes: 0 all sent, or nothing to send; 1 the server did not take it; 2 no such folder, nobody logged in."""
    with one_line(keep=False):
        folder = Path(next(iter(sys.argv[1:]), "outputs"))
        if not folder.is_dir():
            raise InputError(f"no folder {folder}; give the one that holds the runs")
        files = [file for file in folder.rglob("wandb/offline-run-*/*.wandb") if not sent_mark(file).exists()]
        ready = sorted(file for file in files if not _in_use(file.parents[2]))
        if len(ready) < len(files):
            say(f"{len(files) - len(ready)} offline run(s) are still being written; sync them when they have ended")
        if not ready:
            say(f"nothing to sync below {folder}")
            return
        upload(ready)


def _in_use(folder: Path) -> bool:
    """Whether a process trains in this run folder."""
    if not (folder / ".lock").exists():
        return False
    with (folder / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


if __name__ == "__main__":
    main()
