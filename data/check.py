"""Check every image of a set: `python -m data.check ROOT`.

Decodes all files in parallel, reports damaged, unsupported, wrongly named and duplicate ones, and writes
ROOT/manifest.json. Training reads the set from there, without damaged and unsupported files. Wrongly named and
duplicate files stay: both loaders read them, and only a person can say which copy to delete. `--full` writes nothing
and compares every file with the manifest. Exit codes: 0 done; 1 `--full` found a difference; 2 wrong input, or another
process writes the set; 75 interrupted.
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image

from cotnet.errors import DataError
from data.prepare.commands import claimed, exit_code, in_processes, processes
from data.sets.folders import list_folders
from data.sets.image_file import DECODING_ERRORS, damaged_reason
from data.sets.image_set import EXTENSIONS, FORMATS, some
from data.sets.manifest import NAME, load_manifest, write_manifest
from data.sets.read import require_same_classes

_MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # at most 8 bits a channel
SPLITS: Final = ("train", "val")


class Finding(NamedTuple):
    """One file: size in pixels, digest, why it is excluded, and another remark."""

    height: int
    width: int
    digest: str
    excluded: str | None
    remark: str | None


def examine(path: str) -> Finding:
    """Read and decode one file completely."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return Finding(0, 0, "", f"unreadable ({error.strerror})", None)
    digest = blake2b(content, digest_size=8).hexdigest()
    try:
        with Image.open(BytesIO(content)) as image:
            (width, height), mode = image.size, image.mode
            kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG of several pictures
            if kind not in FORMATS:
                return Finding(height, width, digest, f"unsupported format {kind}", None)
            if mode not in _MODES:
                return Finding(height, width, digest, f"unsupported: more than 8 bits a channel ({mode})", None)
            image.convert("RGB")
    except DECODING_ERRORS as error:
        return Finding(0, 0, digest, damaged_reason(error), None)
    ending = Path(path).suffix.lower()
    if ending not in EXTENSIONS:
        return Finding(height, width, digest, f"unsupported ending {ending or '(none)'} of a {kind} file", None)
    remark = None if ending in FORMATS[kind] else f"wrongly named: a {kind} file"
    return Finding(height, width, digest, None, remark)


def check(root: Path, workers: int) -> list[str]:
    """Examine every file and write the manifest; returns the lines for people.

    Raises DataError for a set that cannot be used, and if another process checks or prepares it.
    """
    list_folders(root, SPLITS[0])  # so that a missing set gets no lock file
    with claimed(root, remedy="wait for it"):
        return _check(root, workers)


def _check(root: Path, workers: int) -> list[str]:
    names = {split: list_folders(root, split) for split in SPLITS}
    require_same_classes(root, train=tuple(names["train"]), val=tuple(names["val"]))
    classes = tuple(names["train"])
    files = [f"{split}/{name}/{file}" for split in SPLITS for name in names[split] for file in names[split][name]]
    found = in_processes(examine, [str(root / file) for file in files], workers=workers, title="decoding", chunk=16)
    findings = dict(zip(files, found, strict=True))
    splits = {split: _columns(split, names[split], findings=findings) for split in SPLITS}
    for split in SPLITS:
        if bare := [classes[label] for label in sorted(set(range(len(classes))) - set(splits[split]["labels"]))]:
            raise DataError(
                f"{root / split}: class folders without a usable image: {some(bare)}{_why(splits[split], bare[0])}; "
                "add some or remove them"
            )
    write_manifest(root, classes, splits=splits)
    lines = [f"{root / file}: {found.excluded} (excluded)" for file, found in findings.items() if found.excluded]
    lines += [f"{root / file}: {found.remark}" for file, found in findings.items() if found.remark]
    lines += _duplicates(root, findings)
    counts = ", ".join(
        f"{len(splits[split]['files'])} {split} images ({len(splits[split]['excluded'])} excluded)" for split in SPLITS
    )
    return [*lines, f"{root / NAME}: {len(classes)} classes, {counts}"]


def _columns(split: str, names: Mapping[str, Sequence[str]], *, findings: Mapping[str, Finding]) -> dict[str, Any]:
    rows = [
        (f"{name}/{file}", label, findings[f"{split}/{name}/{file}"])
        for label, (name, inside) in enumerate(names.items())
        for file in inside
    ]
    usable = [row for row in rows if not row[2].excluded]
    return {
        "files": [file for file, _, _ in usable],
        "labels": [label for _, label, _ in usable],
        "heights": [found.height for _, _, found in usable],
        "widths": [found.width for _, _, found in usable],
        "digests": [found.digest for _, _, found in usable],
        "excluded": {file: found.excluded for file, _, found in rows if found.excluded},
    }


def _why(columns: dict[str, Any], name: str) -> str:
    """Why the first file of a class was excluded."""
    excluded = ((file, reason) for file, reason in columns["excluded"].items() if file.startswith(f"{name}/"))
    return next((f" ({file}: {reason})" for file, reason in excluded), "")


def _duplicates(root: Path, findings: dict[str, Finding]) -> Iterable[str]:
    by_digest = defaultdict(list)
    for file, found in findings.items():
        if found.digest and not found.excluded:
            by_digest[found.digest].append(file)
    for first, *others in by_digest.values():
        for other in others:
            both = "" if first.split("/")[0] == other.split("/")[0] else ", in the other split"
            yield f"{root / other}: the same file as {root / first}{both}"


def compare(root: Path) -> list[str]:
    """Compare every file's content with the manifest; a line for each missing, new or changed file."""
    content = load_manifest(root)
    if content is None:
        raise DataError(f"{root}: has no {NAME}; run python -m data.check {root} first")
    lines = []
    for split, columns in content["splits"].items():
        present = {f"{name}/{file}" for name, found in list_folders(root, split).items() for file in found}
        known = dict(zip(columns["files"], columns["digests"], strict=True))
        lines += [f"{root / split / file}: missing" for file in sorted((known.keys() | columns["excluded"]) - present)]
        lines += [f"{root / split / file}: new" for file in sorted(present - known.keys() - columns["excluded"].keys())]
        for file in sorted(present & known.keys()):
            if blake2b((root / split / file).read_bytes(), digest_size=8).hexdigest() != known[file]:
                lines.append(f"{root / split / file}: changed")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one set; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data.check", description="Look at every image of a set.")
    parser.add_argument("root", type=Path, help="the folder that holds train/ and val/")
    parser.add_argument("--full", action="store_true", help=f"compare every file with {NAME}, write nothing")
    parser.add_argument("--workers", type=processes, default=os.cpu_count() or 1, help="processes (%(default)s)")
    given = parser.parse_args(arguments)
    return exit_code(lambda: _run(given), given.root)


def _run(given: argparse.Namespace) -> int:
    if given.root.is_file():
        raise DataError(f"{given.root}: a file; give the folder that holds train/ and val/ (for a list, of its images)")
    lines = compare(given.root) if given.full else check(given.root, given.workers)
    changed = bool(given.full and lines)
    if given.full:
        lines = [*lines, f"{given.root}: {len(lines)} differences from {NAME}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(changed)


if __name__ == "__main__":
    sys.exit(main())
