"""The manifest of a checked image set, root/manifest.json, which `python -m data.check` writes.

By columns (1.28 M entries load in seconds), for each split: files, labels, heights, widths, digests (64-bit BLAKE2b of
the content), fingerprint, class folders with their modification times, and excluded files with reasons.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from cotnet.errors import DataError
from cotnet.files import write_text
from data.sets.image_set import EXTENSIONS, ImageSet, fingerprint, some, visible

NAME: Final = "manifest.json"
_VERSION: Final = 1
Columns = Mapping[str, Any]


def write_manifest(root: Path, classes: Sequence[str], *, splits: Mapping[str, Columns]) -> None:
    """Write root/manifest.json in one move.

    splits: by name, the columns files, labels, heights, widths, digests and excluded ({file: reason}).
    """
    written = {}
    for split, columns in splits.items():
        folders = {name: (root / split / name).stat().st_mtime_ns for name in classes if (root / split / name).is_dir()}
        digest = fingerprint(classes, columns["files"], labels=np.array(columns["labels"], dtype=np.int64))
        written[split] = {**columns, "fingerprint": digest, "folders": folders}
    write_text(root / NAME, json.dumps({"version": _VERSION, "classes": classes, "splits": written}))


def load_manifest(root: Path) -> dict[str, Any] | None:
    """The content of root/manifest.json, None if there is none. Raises DataError for another file of that name."""
    path = root / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["version"] == _VERSION and {"classes", "splits"} <= content.keys():
            return content
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path}: not a manifest of this version; run python -m data.check {root} again, or remove it")


def manifest_split(root: Path, split: str, *, content: Mapping[str, Any]) -> ImageSet:
    """One split with sizes and without excluded files.

    Raises DataError if a class folder holds other names now. Only folders with a new modification time are read.
    """
    if split not in content["splits"]:
        raise DataError(f"{root / NAME}: has no split {split}; run python -m data.check {root} again")
    columns, classes = content["splits"][split], tuple(content["classes"])
    _refuse_changes(root, root / split, columns=columns)
    digest, left_out = _with_excluded(classes, columns)
    return ImageSet(
        root=root / split,
        files=tuple(columns["files"]),
        labels=np.array(columns["labels"], dtype=np.int64),
        classes=classes,
        fingerprint=digest,
        sizes=np.stack([columns["heights"], columns["widths"]], axis=1).astype(np.int64),
        excluded=len(columns["excluded"]),
        left_out=left_out,
    )


def _with_excluded(classes: tuple[str, ...], columns: Columns) -> tuple[str, tuple[int, ...]]:
    """The full set's fingerprint and the positions of the excluded images in it.

    With both, a run that began before the exclusion continues in the same order.
    """
    excluded = {file for file in columns["excluded"] if file.lower().endswith(EXTENSIONS)}
    if not excluded:
        return str(columns["fingerprint"]), ()
    index = {name: label for label, name in enumerate(classes)}
    rows = sorted((index[file.split("/", 1)[0]], file) for file in (*columns["files"], *excluded))
    labels, files = np.array([label for label, _ in rows], dtype=np.int64), [file for _, file in rows]
    positions = tuple(row for row, file in enumerate(files) if file in excluded)
    return fingerprint(classes, files, labels=labels), positions


def _refuse_changes(root: Path, folder: Path, *, columns: Columns) -> None:
    again = f"run python -m data.check {root} again, or remove {NAME}"
    try:
        present = {entry.name: entry.stat().st_mtime_ns for entry in visible(folder) if entry.is_dir()}
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); {again}") from error
    if changed := sorted(present.keys() ^ columns["folders"].keys()):
        raise DataError(f"{folder}: class folders changed since {NAME} was written ({some(changed)}); {again}")
    touched = {name for name, time in present.items() if time != columns["folders"][name]}
    if not touched:
        return
    known = {file for file in (*columns["files"], *columns["excluded"]) if file.split("/", 1)[0] in touched}
    found = {f"{name}/{entry.name}" for name in touched for entry in visible(folder / name)}
    if changed := sorted(known ^ found):
        raise DataError(f"{folder}: files changed since {NAME} was written ({some(changed)}); {again}")
