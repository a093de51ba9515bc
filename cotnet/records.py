"""The figures a run leaves on disk: `metrics.jsonl`, one JSON object a line, and small JSON files written whole.

A record is a flat mapping; `step` counts the completed optimizer steps and never falls from one line to the next.
Numbers are written as Python's shortest form that reads back to the same float, so nothing is rounded. JSON has no
NaN and no infinity: both become null, and read back as None.

One process writes a file (rank 0); any number may read it meanwhile.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cotnet.errors import InputError
from cotnet.files import write_atomic


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds one line, handed to the operating system before returning: it outlives a kill, not yet a power failure.

    Raises TypeError for a value that JSON does not know (a tensor, a numpy scalar), OSError if it cannot be written.
    """
    with path.open("ab") as file:
        file.write(_encode(record) + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All records, oldest first; a last line that a kill left unfinished is not one of them.

    Raises FileNotFoundError, and InputError if a line before the last is not JSON.
    """
    return [record for _, record in _lines(path)]


def read_existing(path: Path) -> list[dict[str, Any]]:
    """As `read`, with no records where there is no file."""
    return read(path) if path.exists() else []


def cut_back(path: Path, step: int, *, evaluated: bool) -> None:
    """Drops the records after `step` and an unfinished last line, so that a run continues where its checkpoint stands;
    and the validation at `step` unless the checkpoint was `evaluated` there: a kill before it could be saved, after a
    stop in the middle of an evaluation, would leave it twice.

    The file is replaced in one move. What is kept stays byte for byte; with nothing to drop the file is not touched.
    Raises InputError if the file is missing though steps were done, or damaged before its last line.
    """
    if not path.exists():
        if step == 0:
            return
        raise InputError(f"{path} is missing, but the checkpoint stands at step {step}; put it back or start a new run")
    kept = b"".join(
        line
        for line, record in _lines(path)
        if record["step"] < step or (record["step"] == step and (evaluated or not _is_validation(record)))
    )
    if len(kept) != path.stat().st_size:
        write_atomic(path, kept)


def best_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The best value so far of each validation figure of these records, as `best/val/...`: the least loss, the largest
    of the others."""
    best: dict[str, float] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("val/") and value is not None and not key.startswith("val/images"):
                choose, name = min if "/loss" in key else max, f"best/{key}"
                best[name] = choose(best.get(name, value), value)
    return best


def sync(path: Path) -> None:
    """Waits until the file is on the disk: call it before a checkpoint that counts on its records is renamed.

    A file that does not exist yet holds no records to wait for.
    """
    for part in (path, path.parent) if path.exists() else ():
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; errors as in `write_atomic`, and TypeError as in `append`."""
    write_atomic(path, _encode(content, indent=2) + b"\n")


def _is_validation(record: dict[str, Any]) -> bool:
    return any(key.startswith("val/") for key in record)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each whole line with its newline, and what it says."""
    lines = path.read_bytes().splitlines(keepends=True)
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and line.endswith(b"\n"):
            parsed.append((line, record))
        elif number < len(lines):
            raise InputError(f"{path}, line {number}: not a JSON object; mend or remove the line")
    return parsed


def _encode(content: Any, *, indent: int | None = None) -> bytes:
    return json.dumps(finite(content), allow_nan=False, indent=indent).encode()


def finite(content: Any) -> Any:
    """The same content with None for every NaN and infinity: JSON has neither."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
