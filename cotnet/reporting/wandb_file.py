"""A run's local W&B files: reads them, compares them with metrics.jsonl, writes them anew.

wandb writes one file per start, online too: `wandb/[offline-]run-TIME-ID/run-ID.wandb`. It is a header of 7 bytes,
then protobuf records in LevelDB's log format: blocks of 32 KiB of pieces, each with a head of 7 bytes (CRC-32,
length, kind). A record is one whole piece, or a first, any middle and a last piece. A rest of under 7 bytes in a
block is padding.
"""

import json
import math
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cotnet import records
from cotnet.reporting.terminal import say
from cotnet.reporting.wandb_watch import is_watched

Row = dict[str, Any]

BLOCK, HEAD = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def no_error_reports() -> None:
    """Call before wandb is imported: its error reporting can delay the exit by 10 s when the network drops packets."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def wandb_records(path: Path) -> Iterator[Any]:
    """Every protobuf record in order, up to the first piece that is cut off or damaged."""
    no_error_reports()
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    content, position, payload = path.read_bytes(), HEAD, b""
    while position + HEAD <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEAD:
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        piece = content[position + HEAD : position + HEAD + length]
        if len(piece) < length or zlib.crc32(bytes([kind]) + piece) != checksum:
            return
        payload = piece if kind in (WHOLE, FIRST) else payload + piece
        if kind in (WHOLE, LAST):
            yield Record.FromString(payload)
        position += HEAD + length


@dataclass(kw_only=True)
class Start:
    """The file of one start. `rows`: W&B's own count of each row (`_step`), and the row; `run`: a RunRecord, None if a
    kill came before it was written."""

    online: bool
    rows: list[tuple[int, Row]] = field(default_factory=list)
    run: Any = None
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the run, without wandb's own part."""
        updates = self.run.config.update if self.run else ()
        return {item.key: json.loads(item.value_json) for item in updates if item.key and item.key != "_wandb"}

    @property
    def identity(self) -> dict[str, Any]:
        """Project, name, tags and configuration, as arguments of wandb.init."""
        run = self.run
        named = {"project": run.project, "entity": run.entity, "group": run.run_group, "job_type": run.job_type}
        given = {key: value or None for key, value in (named | {"name": run.display_name}).items()}
        return given | {"tags": list(run.tags), "config": self.config}

    @property
    def step(self) -> int:
        """The step at which this start began; 0 if unknown."""
        environment = self.config.get("environment")
        return int(environment.get("step", 0)) if isinstance(environment, dict) else 0


def read_start(path: Path) -> Start:
    """The file of one start, without wandb's own columns (`_step`, `_runtime`, ...)."""
    start = Start(online=is_online(path))
    for record in wandb_records(path):
        match record.WhichOneof("record_type"):
            case "history":
                if not is_watched(row := values_of(record.history.item)):
                    start.rows.append((record.history.step.num, row))
            case "run":
                start.run = record.run
            case "exit":
                start.exit_code = record.exit.exit_code
    return start


@cache
def began_as(folder: Path, run_id: str) -> tuple[str, str]:
    """Project and group of a run, by its last file in the run's folder; empty where unknown. Says once if the file
    cannot be read."""
    try:
        records_of_last = (record for file in run_files(folder, run_id)[-1:] for record in wandb_records(file))
        run = next((record.run for record in records_of_last if record.HasField("run")), None)
    except Exception as error:  # of another version of wandb
        why = next(iter(str(error).splitlines()), "unknown format")
        say(f"W&B: the files of run {run_id} in {folder} cannot be read ({why}); the evaluation is not linked to it")
        run = None
    return (run.project, run.run_group) if run else ("", "")


def logged_artifacts(files: Iterable[Path]) -> set[tuple[str, str]]:
    """Name and digest of every artifact that offline starts hold."""
    found = (record.artifact for file in files for record in wandb_records(file) if record.HasField("artifact"))
    return {(artifact.name, artifact.digest) for artifact in found}


def values_of(items: Iterable[Any]) -> Row:
    """The values of a history or summary record."""
    named = ((item.key or "/".join(item.nested_key), item.value_json) for item in items)
    return {name: json.loads(text) for name, text in named if name[0] != "_"}


def run_files(folder: Path, run_id: str = "*") -> list[Path]:
    """The .wandb files in a run's folder, oldest first: of one W&B run, or of all of them."""
    files = (folder / "wandb").glob(f"*run-*/run-{run_id}.wandb")
    return sorted(files, key=lambda file: (file.parent.name.partition("run-")[2], file.parent.name))


def is_online(file: Path) -> bool:
    """Whether the .wandb file belongs to an online start."""
    return not file.parent.name.startswith("offline-")


def id_of(file: Path) -> str:
    """The W&B run that a .wandb file belongs to."""
    return file.stem.removeprefix("run-")


def rebuilt_number(run_id: str) -> tuple[str, int]:
    """The first id of a run, and how often it was rebuilt: ("1a2b3c4d", 2) for 1a2b3c4d-r2."""
    found = re.fullmatch(r"(.+)-r(\d+)", run_id)
    return (found[1], int(found[2])) if found else (run_id, 0)


def latest_id(folder: Path, run_id: str) -> str:
    """The last run rebuilt from `run_id`, or `run_id` itself."""
    ids = {run_id, *map(id_of, run_files(folder))}
    first = rebuilt_number(run_id)[0]
    return max((name for name in ids if rebuilt_number(name)[0] == first), key=lambda name: rebuilt_number(name)[1])


class LocalRecord:
    """The rows in all files of a W&B run, without rows of an online start that never reached the server. `received`:
    how many rows the server has, if known."""

    def __init__(self, files: Iterable[Path] = (), *, received: float = math.inf) -> None:
        starts = [read_start(file) for file in files]
        self.held: Counter[frozenset[tuple[str, Any]]] = Counter()
        for start in reversed(starts):
            self.held.update(row_key(row) for number, row in start.rows if number < received or not start.online)
            if start.online:
                received = min([received, *(number for number, _ in start.rows)])
        # Files of earlier starts may be deleted (`wandb sync --clean`): rows up to here may be on the server.
        self._known_from = min((start.step or -1 for start in starts), default=math.inf)

    def add(self, row: Row) -> None:
        """A row is logged."""
        self.held[row_key(row)] += 1

    def compare(self, rows: Sequence[Row], *, all_rows: bool = False) -> tuple[list[Row], int]:
        """The missing rows of metrics.jsonl, and the number of extra rows (logged twice or rolled back). Rows before
        the first existing file count as missing only with `all_rows`."""
        left, missing = self.held.copy(), []
        for row in rows:
            if left[row_key(row)]:
                left[row_key(row)] -= 1
            elif all_rows or row["step"] > self._known_from:
                missing.append(row)
        return missing, left.total()


def difference(folder: Path, run_id: str) -> dict[str, int]:
    """How many rows the files of a W&B run are `missing`, and how many are `extra`; see `LocalRecord.compare`."""
    missing, extra = LocalRecord(run_files(folder, run_id)).compare(records.read_existing(folder / "metrics.jsonl"))
    return {"missing": len(missing), "extra": extra}


def row_key(row: Row) -> frozenset[tuple[str, Any]]:
    """Equal for the same row in metrics.jsonl and in W&B, which keeps NaN and infinity where JSON has null."""
    return frozenset((name, None if isinstance(x, float) and not math.isfinite(x) else x) for name, x in row.items())


def as_logged(row: Row) -> Row:
    """A row of metrics.jsonl as it is logged first: null was NaN or infinity."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def write_run(folder: Path, rows: Sequence[Row], *, summary: Row, exit_code: int, **chosen: Any) -> Path:
    """Write an offline run of these rows under `folder`; its .wandb file. `chosen` are arguments of wandb.init."""
    import wandb

    settings = wandb.Settings(silent=True)
    run = wandb.init(dir=str(folder), mode="offline", settings=settings, **chosen)
    run.define_metric("*", step_metric="step")
    for row in rows:
        run.log(as_logged(row))
    run.summary.update(summary)
    run.finish(exit_code=exit_code)
    return Path(run.settings.sync_file)
