"""Uploads the offline W&B runs below a folder, and rebuilds W&B runs that differ from metrics.jsonl.

Leaves out runs that were sent already, and runs that a process is still writing: wandb would mark them as sent.
"""

import argparse
import http.client
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from cotnet import records
from cotnet.commands.program import one_line
from cotnet.config.claims import claimed
from cotnet.errors import InputError, RunError
from cotnet.files import in_use
from cotnet.reporting import wandb_file
from cotnet.reporting.terminal import say
from cotnet.reporting.wandb_file import LocalRecord, id_of, is_online
from cotnet.reporting.wandb_session import account, wandb_settings

ANSWER_SECONDS = 10.0  # how long the server's first answer may take
DRAFT = ".rebuild"  # in a run's wandb folder: a rebuilt run that is not complete yet

HELP = "upload the offline W&B runs below a folder; runs that are still being written are left out"
REBUILD_HELP = (
    "first write a new offline W&B run from metrics.jsonl for every run below FOLDER whose W&B record differs from it "
    "(where FOLDER is a run's own folder, in any case); the new run, with -r1, -r2, ... behind the id, takes the place "
    "of the offline files so far. W&B runs that are on the server already stay there; delete them by hand"
)
CODES = (
    "exit codes: 0 all sent, nothing to send, or rebuilt and kept because nobody is logged in; 1 the server did not "
    "take it; 2 no such folder, no run to rebuild, a run to rebuild is in use, nobody logged in"
)


def main() -> None:
    """The command line; exit codes as in `CODES`."""
    parser = argparse.ArgumentParser(prog="python -m cotnet.sync", description=HELP, epilog=CODES)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default="outputs", help="default: outputs")
    parser.add_argument("--rebuild", action="store_true", help=REBUILD_HELP)
    given = parser.parse_args()
    with one_line(keep=False):
        if not given.folder.is_dir():
            raise InputError(f"no folder {given.folder}; give the one that holds the runs")
        rebuilt = rebuild_all(given.folder) if given.rebuild else 0
        sync(given.folder, keep=rebuilt > 0)


def sync(folder: Path, *, keep: bool = False) -> None:
    """Sends every offline run below the folder. Without a login raises InputError, or if `keep` prints that they wait.
    Other errors as in `upload`."""
    files = [file for file in folder.rglob("wandb/offline-run-*/*.wandb") if DRAFT not in file.parts]
    files = [file for file in files if not sent_mark(file).exists()]
    ready = sorted(file for file in files if not in_use(file.parents[2] / ".lock"))
    if len(ready) < len(files):
        say(f"{len(files) - len(ready)} offline run(s) are still being written; sync them when they have ended")
    if not ready:
        say(f"nothing to sync below {folder}")
        return
    known, server = account()
    line = f"not logged in to W&B, {len(ready)} offline runs wait; run wandb login, then "
    if known:
        upload(ready, server)
    elif keep:
        say(f"{line}python -m cotnet.sync {folder}")
    else:
        raise InputError(f"{line}this again")


def upload(files: Sequence[Path], server: str) -> None:
    """Sends offline runs, given by their .wandb files, to the server. Files of one run id become one run, in order.
    Raises RunError if the server does not answer, or refused some runs; those can be sent again."""
    _require_answer(server)
    command = [sys.executable, "-m", "wandb", "sync", "--yes", *(str(file.parent) for file in files)]
    complaints = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            say(line.rstrip())
            complaints += line if "ERROR" in line else ""
    # wandb exits with 0 and marks a run as sent even if the server refused it.
    refused = [file for file in files if id_of(file) in complaints]
    for file in refused or (files if complaints else ()):
        sent_mark(file).unlink(missing_ok=True)
    if left := sum(not sent_mark(file).exists() for file in files):
        raise RunError(
            f"{left} of {len(files)} offline runs were not sent, for the reasons above; they stay to be sent"
        )


def sent_mark(file: Path) -> Path:
    """The empty file by which `wandb sync` remembers that it sent a .wandb file."""
    return file.with_name(f"{file.name}.synced")


def _require_answer(server: str) -> None:
    """Raises RunError if the server does not answer: `wandb sync` would wait for it forever."""
    try:
        with urllib.request.urlopen(server, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return
        reason = str(error)
    except (OSError, http.client.HTTPException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    raise RunError(f"W&B at {server} does not answer ({reason}); nothing was sent, try again later") from None


# --- rebuilding ---------------------------------------------------------------------------------------------------


def rebuild_all(folder: Path) -> int:
    """Rebuilds the run in this folder, or every run below it whose W&B record differs from metrics.jsonl; how many.
    Raises InputError if there is no run, or this one is in use or has no W&B record."""
    runs = sorted({file.parents[2] for file in folder.rglob("wandb/*run-*/*.wandb") if DRAFT not in file.parts})
    runs = [run for run in runs if (run / "metrics.jsonl").exists()]
    if not runs:
        raise InputError(f"no run below {folder} has metrics.jsonl and a W&B record; give a run's folder")
    if runs == [folder]:
        return rebuild(folder)
    rebuilt = 0
    for run in runs:
        try:
            rebuilt += rebuild(run, only_different=True)
        except InputError as error:
            say(f"left out: {error}")
    return rebuilt


def rebuild(folder: Path, *, only_different: bool = False) -> bool:
    """Writes a run's metrics.jsonl as a new offline W&B run that replaces its offline files; whether it did. Raises
    InputError if the run is in use or no W&B record of it can be read, RunError if wandb writes something else."""
    with claimed(folder, otherwise="rebuild its record later"):
        draft = folder / "wandb" / DRAFT
        shutil.rmtree(draft, ignore_errors=True)
        files = wandb_file.run_files(folder)
        last = id_of(files[-1])
        wanted = not only_different or any(wandb_file.difference(folder, last).values())
        if wanted:
            draft.mkdir()
            try:
                new = _write_draft(folder, draft, files)
                new.parent.rename(folder / "wandb" / new.parent.name)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            last = id_of(new)
            if (summary := _summary(folder)).pop("wandb", None):  # about the replaced record
                records.write_json(folder / "summary.json", summary)
            say(f"{folder}: rebuilt from metrics.jsonl as W&B run {last}{_left_on_server(files)}")
        replaced = [file for file in files if id_of(file) != last] if wandb_file.rebuilt_number(last)[1] else []
        for file in replaced:  # also finishes an earlier call that was killed here
            if not is_online(file) and not sent_mark(file).exists():
                sent_mark(file).write_text(f"replaced by {last}\n")  # wandb's own mark is empty
        return wanted


def _write_draft(folder: Path, draft: Path, files: Sequence[Path]) -> Path:
    """The .wandb file of the new run, with project and name of the last file that can be read."""
    starts = [wandb_file.read_start(file) for file in files]
    readable = [start for start in starts if start.run]
    if not readable:
        raise InputError(f"{folder}: no file of its W&B record can be read, so its project and name are unknown")
    ids, rows = list(dict.fromkeys(map(id_of, files))), records.read(folder / "metrics.jsonl")
    first, _ = wandb_file.rebuilt_number(ids[-1])
    number = 1 + max(number for name, number in map(wandb_file.rebuilt_number, ids) if name == first)
    rebuilt = f"Rebuilt from metrics.jsonl; replaces W&B run {', '.join(ids)}."
    notes = " ".join(filter(None, [readable[-1].run.notes, rebuilt]))
    best = {key: value for key, value in _summary(folder).items() if key.startswith("best_") and value is not None}
    code = 1 if starts[-1].exit_code is None else starts[-1].exit_code  # None: killed
    try:
        with wandb_settings():
            chosen = readable[-1].identity | {"id": f"{first}-r{number}", "notes": notes}
            summary = best | records.best_figures(rows)
            new = wandb_file.write_run(draft, rows, summary=summary, exit_code=code, **chosen)
        missing, extra = LocalRecord([new]).compare(rows, all_rows=True)
    except Exception as error:  # wandb's errors have no common base, see WandbLogger
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(f"{folder}: wandb could not write the run ({reason}); nothing was changed") from error
    if missing or extra:
        raise RunError(f"{folder}: wandb wrote {len(missing)} rows too few, {extra} too many; nothing was changed")
    return new


def _left_on_server(files: Sequence[Path]) -> str:
    """The end of the line: which replaced runs are on the server already."""
    sent = [file for file in files if is_online(file) or (sent_mark(file).exists() and not sent_mark(file).read_text())]
    ids = ", ".join(dict.fromkeys(map(id_of, sent)))
    return f"; what was sent of {ids} stays on the server: delete it there" if ids else ""


def _summary(folder: Path) -> dict[str, object]:
    """summary.json; empty before the first evaluation."""
    path = folder / "summary.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


if __name__ == "__main__":
    main()
