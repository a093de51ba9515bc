"""ledger.jsonl: which sweep a folder holds and the state of each trial. Lines are only ever appended."""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cotnet import records
from cotnet.config.continuing import names_run
from cotnet.errors import InputError
from cotnet.files import SWEEP_LEDGER, write_atomic
from cotnet.sweeps.space import Trial

TrialState = Literal["started", "finished", "failed", "interrupted"]


@dataclass(kw_only=True)
class TrialRecord:
    """A trial's last state, the last line of its log if it failed, and the seconds of all its starts."""

    trial: Trial
    state: TrialState
    line: str = ""
    seconds: float = 0.0


class Ledger:
    """The sweep in `folder`. Whoever writes into it holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / SWEEP_LEDGER
        self.identity: dict[str, Any] = {}
        self.start: dict[str, Any] = {}
        self.entries: dict[str, TrialRecord] = {}

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """Read the ledger of any folder. Raises InputError if there is none or a line is damaged."""
        ledger = cls(folder)
        if not ledger.path.exists():
            raise InputError(f"{folder} holds no sweep ({SWEEP_LEDGER} is missing); name the folder of a --multirun")
        for number, record in enumerate(records.read(ledger.path), start=1):
            try:
                ledger._apply(record)
            except (KeyError, TypeError):
                raise InputError(f"{ledger.path}, line {number}: not a ledger's; mend or remove the line") from None
        return ledger

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> "Ledger":
        """Begin the sweep that `identity` describes, or continue it. Raises InputError if the folder holds another
        sweep, or a run."""
        path = folder / SWEEP_LEDGER
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and (folder / "checkpoints").exists():
            raise InputError(f"{folder} holds a run, not a sweep; choose another output_dir")
        if whole != content:  # a kill cut the last line
            write_atomic(path, whole)
        if not whole:
            records.append(path, {"sweep": dict(identity)})
        ledger = cls.read(folder)
        theirs, ours = ledger.identity, json.loads(json.dumps(identity))
        theirs = theirs | {"shared": [override for override in theirs["shared"] if names_run(override)]}
        if theirs != ours:
            raise InputError(f"{folder} holds another sweep ({_difference(theirs, ours)}); choose another output_dir")
        return ledger

    def begin(self, start: Mapping[str, Any]) -> None:
        """Write what may change from one start to the next."""
        self.start = dict(start)
        records.append(self.path, {"start": self.start})

    def record(self, trial: Trial, state: TrialState, *, seconds: float = 0.0, code: int = 0, line: str = "") -> None:
        """Append a state. The operating system has the line before this returns, so a kill does not lose it."""
        time = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        about: dict[str, Any] = {"overrides": list(trial.overrides)}
        if state != "started":
            about = {"code": code, "seconds": round(seconds, 1)} | ({"line": line} if line else {})
        record = {"trial": trial.name, "state": state, "time": time, **about}
        records.append(self.path, record)
        self._apply(record)

    def trials(self, *states: TrialState) -> list[Trial]:
        """The trials in these states, or all, in the order of their first start."""
        return [entry.trial for entry in self.entries.values() if not states or entry.state in states]

    def _apply(self, record: Mapping[str, Any]) -> None:
        if "sweep" in record:
            self.identity = record["sweep"]
        elif "start" in record:
            self.start = record["start"]
        elif record["state"] == "started":
            trial = Trial(name=record["trial"], overrides=tuple(record["overrides"]))
            self.entries.setdefault(trial.name, TrialRecord(trial=trial, state="started")).state = "started"
        else:
            entry = self.entries[record["trial"]]
            entry.state, entry.line = record["state"], record.get("line", "")
            entry.seconds += record["seconds"]


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first difference, for a person."""
    key = next(key for key in [*theirs, *ours] if theirs.get(key) != ours.get(key))
    was, now = theirs.get(key), ours.get(key)
    shown = [json.dumps(was), json.dumps(now)]
    if isinstance(was, list) and isinstance(now, list):
        only = ((item for item in a if item not in b) for a, b in ((was, now), (now, was)))
        shown = [" ".join(items) or "without it" for items in only]
    return f"{key} was {shown[0]}, now {shown[1]}"
