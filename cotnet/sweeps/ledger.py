"""ledger.jsonl: what a sweep is and what became of each of its trials; lines are only ever added."""

import datetime
import fcntl
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cotnet import records
from cotnet.config.continuing import names_run
from cotnet.errors import InputError
from cotnet.sweeps.space import Trial

NAME = "ledger.jsonl"
State = Literal["started", "finished", "failed", "interrupted"]


@dataclass(kw_only=True)
class Entry:
    """The last word on a trial; `line` is the last one of its log if it failed, `seconds` add up over its starts."""

    trial: Trial
    state: State
    line: str = ""
    seconds: float = 0.0


class Ledger:
    """The sweep in `folder`; its caller holds the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self.identity: dict[str, Any] = {}
        self.start: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """Of any folder, for looking.

        Raises InputError if there is none or a line is damaged.
        """
        ledger = cls(folder)
        if not ledger.path.exists():
            raise InputError(f"{folder} holds no sweep ({NAME} is missing); name the folder of a --multirun")
        for number, record in enumerate(records.read(ledger.path), start=1):
            try:
                ledger._take(record)
            except (KeyError, TypeError):
                raise InputError(f"{ledger.path}, line {number}: not a ledger's; mend or remove the line") from None
        return ledger

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> "Ledger":
        """Begin or go on with the sweep that `identity` says.

        Raises InputError if the folder holds another sweep, or a run.
        """
        mend(folder / NAME)
        if not (folder / NAME).exists():
            if (folder / "checkpoints").exists():
                raise InputError(f"{folder} holds a run, not a sweep; choose another output_dir")
            ledger = cls(folder)
            ledger._add({"sweep": dict(identity)})
        ledger = cls.read(folder)
        theirs, ours = ledger.identity, json.loads(json.dumps(identity))
        theirs = theirs | {"shared": [override for override in theirs["shared"] if names_run(override)]}
        if theirs != ours:
            raise InputError(f"{folder} holds another sweep ({_difference(theirs, ours)}); choose another output_dir")
        return ledger

    def begin(self, start: Mapping[str, Any]) -> None:
        """Write down what may change from one start to the next."""
        self._add({"start": dict(start)})

    def record(self, trial: Trial, state: State, *, seconds: float = 0.0, code: int = 0, line: str = "") -> None:
        """One more line: handed to the operating system before returning, so a kill does not lose it."""
        time = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        about: dict[str, Any] = {"overrides": list(trial.overrides)} if state == "started" else {"code": code}
        if state != "started":
            about["seconds"] = round(seconds, 1)
        if line:
            about["line"] = line
        self._add({"trial": trial.name, "state": state, "time": time, **about})

    def trials(self, *states: State) -> list[Trial]:
        return [entry.trial for entry in self.entries.values() if not states or entry.state in states]

    def _add(self, record: dict[str, Any]) -> None:
        records.append(self.path, record)
        self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        if "sweep" in record:
            self.identity = record["sweep"]
        elif "start" in record:
            self.start = record["start"]
        elif record["state"] == "started":
            trial = Trial(name=record["trial"], overrides=tuple(record["overrides"]))
            self.entries.setdefault(trial.name, Entry(trial=trial, state="started")).state = "started"
        else:
            entry = self.entries[record["trial"]]
            entry.state, entry.line = record["state"], record.get("line", "")
            entry.seconds += record["seconds"]


def mend(path: Path) -> None:
    """Take away a last line that a kill left unfinished, so that the next one stands alone."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        records.write_atomic(path, content[: content.rfind(b"\n") + 1])
        if path.stat().st_size == 0:
            path.unlink()


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder of a sweep or of a run."""
    try:
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first thing that differs, for a person."""
    for key in [*theirs, *(key for key in ours if key not in theirs)]:
        was, now = theirs.get(key), ours.get(key)
        if was == now:
            continue
        if isinstance(was, list) and isinstance(now, list):
            return f"{key} was {_only(was, now)}, now {_only(now, was)}"
        return f"{key} was {json.dumps(was)}, now {json.dumps(now)}"
    return ""


def _only(these: Iterable[str], those: Iterable[str]) -> str:
    return " ".join(item for item in these if item not in set(those)) or "without it"
