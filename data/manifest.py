"""The manifest of a checked image set: what `python -m data.check` found, so that training need not look again.

`root/manifest.json` holds, by columns (1.28 M entries load in seconds), for each split: files, labels, heights, widths,
digests (64-bit BLAKE2b of the content), the fingerprint, the class folders with their modification times, and the
excluded files with reasons.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from cotnet.files import write_text
from data.samples import EXTENSIONS, DataError, ImageSet, file_names, fingerprint, some

NAME: Final = "manifest.json"
_VERSION: Final = 1


def write_manifest(root: Path, classes: tuple[str, ...], splits: dict[str, dict[str, Any]]) -> None:
    """Write root/manifest.json whole or not at all; one process at a time.

    splits: by name, the columns files, labels, heights, widths, digests and excluded ({file: reason}).
    """
    written = {}
    for split, columns in splits.items():
        folders = {name: (root / split / name).stat().st_mtime_ns for name in classes if (root / split / name).is_dir()}
        digest = fingerprint(classes, columns["files"], np.array(columns["labels"], dtype=np.int64))
        written[split] = {**columns, "fingerprint": digest, "folders": folders}
    write_text(root / NAME, json.dumps({"version": _VERSION, "classes": classes, "splits": written}))


def load_manifest(root: Path) -> dict[str, Any] | None:
    """The content of root/manifest.json, None where there is none; DataError where it cannot be used."""
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


def manifest_split(root: Path, split: str, content: dict[str, Any]) -> ImageSet:
    """One split as the manifest lists it, with sizes, and without the files it excludes.

    DataError where a class folder holds other names than it did; only folders with another modification time are read.
    """
    if split not in content["splits"]:
        raise DataError(f"{root / NAME}: has no split {split}; run python -m data.check {root} again")
    columns = content["splits"][split]
    _refuse_changes(root, split, columns)
    whole, left_out = _with_excluded(tuple(content["classes"]), columns)
    return ImageSet(
        root=root / split,
        files=tuple(columns["files"]),
        labels=np.array(columns["labels"], dtype=np.int64),
        classes=tuple(content["classes"]),
        fingerprint=columns["fingerprint"],
        whole=whole,
        sizes=np.stack([columns["heights"], columns["widths"]], axis=1).astype(np.int64),
        excluded=len(columns["excluded"]),
        left_out=left_out,
    )


def _with_excluded(classes: tuple[str, ...], columns: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """The set's fingerprint without a manifest, and which of its files are left out: a run may continue, in the order
    it began with, when a scan has only excluded files."""
    excluded = [file for file in columns["excluded"] if file.lower().endswith(EXTENSIONS)]
    if not excluded:
        return str(columns["fingerprint"]), ()
    index = {name: label for label, name in enumerate(classes)}
    split = (file.split("/", 1) for file in (*columns["files"], *excluded))
    rows = sorted((index[name], file) for name, file in split)
    labels = np.array([label for label, _ in rows], dtype=np.int64)
    files = [f"{classes[label]}/{file}" for label, file in rows]
    gone = set(excluded)
    return fingerprint(classes, files, labels), tuple(row for row, file in enumerate(files) if file in gone)


def _refuse_changes(root: Path, split: str, columns: dict[str, Any]) -> None:
    folder = root / split
    again = f"run python -m data.check {root} again, or remove {NAME}"
    try:
        with os.scandir(folder) as entries:
            present = {
                entry.name: entry.stat().st_mtime_ns
                for entry in entries
                if entry.is_dir() and not entry.name.startswith(".")
            }
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); {again}") from error
    if present.keys() != columns["folders"].keys():
        names = some(sorted(present.keys() ^ columns["folders"].keys()))
        raise DataError(f"{folder}: class folders changed since {NAME} was written ({names}); {again}")
    touched = {name for name, time in present.items() if time != columns["folders"][name]}
    if not touched:
        return
    known = {file for file in (*columns["files"], *columns["excluded"]) if file.split("/", 1)[0] in touched}
    found = {f"{name}/{file}" for name in touched for file in file_names(folder / name)}
    if known != found:
        names = some(sorted(known ^ found))
        raise DataError(f"{folder}: files changed since {NAME} was written ({names}); {again}")
