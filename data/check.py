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
from data.sets.image_set import DECODING_ERRORS, DEEP_MODES, EXTENSIONS, FORMATS, JPEG_END, damaged_reason, some
from data.sets.manifest import NAME, load_manifest, write_manifest
from data.sets.read import list_folders, require_same_classes

_MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", *DEEP_MODES)  # both loaders decode alike
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
                return Finding(height, width, digest, f"unsupported: levels of PIL's mode {mode}", None)
            image.convert("RGB")
    except DECODING_ERRORS as error:
        return Finding(0, 0, digest, damaged_reason(error), None)
    ending = Path(path).suffix.lower()
    if ending not in EXTENSIONS:
        return Finding(height, width, digest, f"unsupported ending {ending or '(none)'} of a {kind} file", None)
    remark = None if ending in FORMATS[kind] else f"wrongly named: a {kind} file"
    if kind == "JPEG" and not content.rstrip(b"\0").endswith(JPEG_END):
        remark = "does not end as a JPEG does: other data behind the image, or zeros instead of its last part"
    return Finding(height, width, digest, None, remark)


def check(root: Path, workers: int) -> list[str]:
    """Examine every file and write the manifest; returns the lines for people.

    Raises DataError for a set that cannot be used, and if another process checks or prepares it.
    """
    list_folders(root, SPLITS[0])  # so that a missing set gets no lock file
    with claimed(root, remedy="wait for it"):
        names = {split: list_folders(root, split) for split in SPLITS}
        require_same_classes(root, train=tuple(names["train"]), val=tuple(names["val"]))
        files = [f"{split}/{name}/{file}" for split in SPLITS for name in names[split] for file in names[split][name]]
        found = in_processes(examine, [str(root / file) for file in files], workers=workers, title="decoding", chunk=16)
        findings = dict(zip(files, found, strict=True))
        splits = {split: _columns(root / split, tuple(names[split]), findings=findings) for split in SPLITS}
        write_manifest(root, tuple(names["train"]), splits=splits)
    lines = [f"{root / file}: {found.excluded} (excluded)" for file, found in findings.items() if found.excluded]
    lines += [f"{root / file}: {found.remark}" for file, found in findings.items() if found.remark]
    lines += _duplicates(root, findings)
    counts = [
        f"{len(columns['files'])} {split} images ({len(columns['excluded'])} excluded)"
        for split, columns in splits.items()
    ]
    return [*lines, f"{root / NAME}: {len(names['train'])} classes, {', '.join(counts)}"]


def _columns(folder: Path, classes: Sequence[str], *, findings: Mapping[str, Finding]) -> dict[str, Any]:
    """The manifest's columns of a split. Raises DataError for a class without a usable image."""
    start = f"{folder.name}/"
    found = {file.removeprefix(start): one for file, one in findings.items() if file.startswith(start)}
    excluded = {file: one.excluded for file, one in found.items() if one.excluded}
    usable = {file: one for file, one in found.items() if not one.excluded}
    label = {name: number for number, name in enumerate(classes)}
    labels = [label[file.split("/")[0]] for file in usable]
    present = set(labels)
    if bare := [name for name in classes if label[name] not in present]:
        reasons = [f" ({file}: {reason})" for file, reason in excluded.items() if file.startswith(f"{bare[0]}/")]
        problem = f"class folders without a usable image: {some(bare)}{''.join(reasons[:1])}"
        raise DataError(f"{folder}: {problem}; add some or remove them")
    sizes = {"heights": [one.height for one in usable.values()], "widths": [one.width for one in usable.values()]}
    digests = [one.digest for one in usable.values()]
    return {"files": list(usable), "labels": labels, **sizes, "digests": digests, "excluded": excluded}


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
    code = int(given.full and bool(lines))
    if given.full:
        lines.append(f"{given.root}: {len(lines)} differences from {NAME}")
    sys.stdout.write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
