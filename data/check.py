"""Look at every image of a set: `python -m data.check ROOT`.

Decodes everything in parallel, names what is damaged, unsupported, wrongly named or there twice, and writes
ROOT/manifest.json, from which training takes the set without the damaged and unsupported files. Wrongly named and
duplicate files are named and stay: both loaders read them, and which copy is too many is for a person to say. `--full`
writes nothing and compares every file with the manifest. Exit codes: 0 done, 1 `--full` found a difference, 2
something a person has to change, also where another process writes the set, 75 Ctrl-C.
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image

from data.commands import claimed, exit_code, in_processes, processes
from data.manifest import NAME, load_manifest, write_manifest
from data.samples import DataError, damaged_reason, list_folders, require_same_classes, some

# Formats that both loaders decode alike, with the endings that name them.
_FORMATS: Final = {
    "JPEG": {".jpg", ".jpeg"},
    "MPO": {".jpg", ".jpeg"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm"},
}
_MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # at most 8 bits a channel
SPLITS: Final = ("train", "val")


class Finding(NamedTuple):
    """What one file is: its size in pixels and digest, why it is excluded, and what else a person should know."""

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
            (width, height), kind, mode = image.size, str(image.format), image.mode
            if kind not in _FORMATS:
                return Finding(height, width, digest, f"unsupported format {kind}", None)
            if mode not in _MODES:
                return Finding(height, width, digest, f"unsupported: more than 8 bits a channel ({mode})", None)
            image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Finding(0, 0, digest, damaged_reason(error), None)
    ending = Path(path).suffix.lower()
    if ending not in {known for endings in _FORMATS.values() for known in endings}:
        return Finding(height, width, digest, f"unsupported ending {ending or '(none)'} of a {kind} file", None)
    remark = None if ending in _FORMATS[kind] else f"wrongly named: a {kind} file"
    return Finding(height, width, digest, None, remark)


def check(root: Path, workers: int) -> list[str]:
    """Examine every file, write the manifest, and return the lines for people.

    DataError for a set that cannot be used, and where another process checks or prepares it.
    """
    list_folders(root, SPLITS[0])  # no lock where nothing is
    with claimed(root, remedy="wait for it"):
        return _check(root, workers)


def _check(root: Path, workers: int) -> list[str]:
    names = {split: list_folders(root, split) for split in SPLITS}
    require_same_classes(root, tuple(names["train"]), tuple(names["val"]))
    classes = tuple(names["train"])
    files = [f"{split}/{name}/{file}" for split in SPLITS for name in names[split] for file in names[split][name]]
    found = in_processes(examine, [str(root / file) for file in files], workers=workers, title="decoding", chunk=16)
    findings = dict(zip(files, found, strict=True))
    splits = {split: _columns(split, names[split], classes, findings) for split in SPLITS}
    for split in SPLITS:
        if bare := [classes[label] for label in sorted(set(range(len(classes))) - set(splits[split]["labels"]))]:
            raise DataError(
                f"{root / split}: class folders without a usable image: {some(bare)}{_why(splits[split], bare[0])}; "
                "add some or remove them"
            )
    write_manifest(root, classes, splits)
    lines = [f"{root / file}: {found.excluded} (excluded)" for file, found in findings.items() if found.excluded]
    lines += [f"{root / file}: {found.remark}" for file, found in findings.items() if found.remark]
    lines += _duplicates(root, findings)
    counts = ", ".join(
        f"{len(splits[split]['files'])} {split} images ({len(splits[split]['excluded'])} excluded)" for split in SPLITS
    )
    return [*lines, f"{root / NAME}: {len(classes)} classes, {counts}"]


def _columns(
    split: str, names: dict[str, list[str]], classes: tuple[str, ...], findings: dict[str, Finding]
) -> dict[str, Any]:
    labels = {name: label for label, name in enumerate(classes)}
    columns: dict[str, Any] = {key: [] for key in ("files", "labels", "heights", "widths", "digests")}
    columns["excluded"] = {}
    for name, inside in names.items():
        for file in inside:
            found = findings[f"{split}/{name}/{file}"]
            if found.excluded:
                columns["excluded"][f"{name}/{file}"] = found.excluded
                continue
            row = (f"{name}/{file}", labels[name], found.height, found.width, found.digest)
            for key, value in zip(("files", "labels", "heights", "widths", "digests"), row, strict=True):
                columns[key].append(value)
    return columns


def _why(columns: dict[str, Any], name: str) -> str:
    """What is wrong with the first file of a class that has only excluded ones."""
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
    """Every file against the manifest by content; the lines name what is missing, new or changed."""
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
