"""Make image sets: `python -m data.prepare SET --help`, where SET is

- digits: scikit-learn's 1,797 handwritten digits, no download needed;
- fashion_mnist: from its four idx files;
- imagenet: from the three official archives;
- subset: some classes, or a share, of a set as a CSV list without copies.

Two at once never write into one folder: the second is refused. Exit codes: 0 done or already there; 2 something a
person has to change, on one line; 75 Ctrl-C, after which the same command goes on.
"""

import argparse
import gzip
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from data.archives import DEVKIT, TRAIN, VAL, Encoding, imagenet
from data.commands import claimed, exit_code, positive, processes
from data.draws import Stream, hashes
from data.lists import subset
from data.samples import DataError, read_splits

_DIGITS: Final = 1797
_DIGITS_SIDE: Final = 32  # 8 in the source; see `digits`
_VAL_SHARE: Final = 0.2


def digits(out: Path) -> str:
    """Write scikit-learn's handwritten digits as out/{train,val}/<digit>/<number>.png; returns a line for people.

    The split is fixed and stratified. The 8x8 originals, 17 grey levels, are stored at 32x32 (bicubic), because crop
    boxes are in whole pixels of the file: a small net at 32 px with crops of 0.8 to 1 reached 99.6 % so, 98.9 % with
    8x8 (mean of three seeds). Nothing is done where `out` is complete.
    """
    if _holds_files(out):
        return _present(out, _DIGITS)
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError("digits come with scikit-learn, which is missing; pip install scikit-learn") from error
    source = load_digits()
    validation = _stratified(source.target, _VAL_SHARE)

    def write(partial: Path) -> str:
        for number, (image, label) in enumerate(zip(source.images, source.target, strict=True)):
            folder = partial / ("val" if validation[number] else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            levels = np.rint(image * (255 / 16)).astype(np.uint8)
            picture = Image.fromarray(levels).resize((_DIGITS_SIDE, _DIGITS_SIDE), Image.Resampling.BICUBIC)
            picture.save(folder / f"{number:04d}.png")
        return f"{_DIGITS - validation.sum()} training and {validation.sum()} validation images of 10 digits"

    return _make(out, _DIGITS, write)


def _stratified(labels: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: the `share` of each class that is held out, the same at every call."""
    keys = hashes(0, 0, Stream.ORDER, np.arange(len(labels)))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out[members[np.argsort(keys[members])[: round(share * len(members))]]] = True
    return held_out


def _make(out: Path, images: int, write: Callable[[Path], str]) -> str:
    """Let `write` fill a folder beside `out`, which is renamed to it when complete; returns the line for people.

    What a kill left there is removed. DataError where another process is at it.
    """
    whole = out.resolve()
    if not whole.parent.exists():
        whole.parent.mkdir(parents=True, exist_ok=True)
    with claimed(out):
        if _holds_files(out):  # made since the caller looked
            return _present(out, images)
        partial = whole.parent / f"{whole.name}.partial"
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        line = write(partial)
        partial.rename(whole)
    return f"{out}: {line}"


def _holds_files(out: Path) -> bool:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: a file; give a folder as --out")
    return out.is_dir() and any(out.iterdir())


def _present(out: Path, images: int) -> str:
    """The line for a set that is there; DataError where something else, or only a part, is there."""
    train, val = read_splits(out)
    if len(train.files) + len(val.files) != images:
        found = len(train.files) + len(val.files)
        raise DataError(f"{out}: holds {found} images, not {images}; remove it or give another --out")
    return f"{out}: already there ({len(train.files)} training and {len(val.files)} validation images)"


FASHION: Final = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def fashion_mnist(source: Path, out: Path) -> str:
    """Write Fashion-MNIST as out/{train,val}/<number>_<word>/<number>.png from its idx files in `source`.

    The files may be packed (.gz). Nothing is done where `out` is complete. Raises DataError for missing and malformed
    files.
    """
    splits = {
        split: (_idx(source, f"{name}-images-idx3-ubyte", 3), _idx(source, f"{name}-labels-idx1-ubyte", 1))
        for split, name in (("train", "train"), ("val", "t10k"))
    }
    if any(len(images) != len(labels) for images, labels in splits.values()):
        raise DataError(f"{source}: another number of labels than of images; download the four files again")
    total = sum(len(labels) for _, labels in splits.values())
    if _holds_files(out):
        return _present(out, total)

    def write(partial: Path) -> str:
        for split, (images, labels) in splits.items():
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                folder = partial / split / f"{label}_{FASHION[label]}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{number:05d}.png")
        return f"{len(splits['train'][1])} training and {len(splits['val'][1])} validation images of 10 classes"

    return _make(out, total, write)


def _idx(source: Path, name: str, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file: two zero bytes, type 8, the number of dimensions, their sizes, the values."""
    path = next((path for path in (source / name, source / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise DataError(
            f"{source / name}: no such file, nor with .gz; give the folder of the four idx files as --source"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: damaged ({error}); download it again") from error
    shape = np.frombuffer(content[4 : 4 + 4 * dimensions], dtype=">u4")
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != 4 + 4 * dimensions + shape.prod():
        raise DataError(f"{path}: not an idx file of {dimensions} dimensions; download it again")
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _quality(text: str) -> int:
    if positive(text) > 95:  # above it a JPEG only grows
        raise argparse.ArgumentTypeError(f"{text} is above 95")
    return int(text)


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("no name in it")
    return names


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Make an image set.")
    sets = parser.add_subparsers(dest="set", required=True)
    command = sets.add_parser("digits", help="scikit-learn's 1,797 handwritten digits")
    command.add_argument("--out", type=Path, default=Path("datasets/digits"), help="folder to write (%(default)s)")
    command = sets.add_parser("fashion_mnist", help="from the four published idx files")
    command.add_argument("--source", type=Path, required=True, help="folder of the idx files, packed (.gz) or not")
    command.add_argument("--out", type=Path, default=Path("datasets/fashion_mnist"), help="folder to write")
    command = sets.add_parser("imagenet", help="from the three official archives")
    command.add_argument("--archives", type=Path, required=True, help=f"folder of {TRAIN}, {VAL} and {DEVKIT}")
    command.add_argument("--out", type=Path, required=True, help="folder to write; a killed run is continued")
    command.add_argument("--workers", type=processes, default=os.cpu_count() or 1, help="processes (%(default)s)")
    command.add_argument(
        "--resize", type=positive, nargs="?", const=500, help="store larger images with this shorter side (%(const)s)"
    )
    command.add_argument("--quality", type=_quality, default=90, help="JPEG quality of resized images (%(default)s)")
    command = sets.add_parser("subset", help="a CSV list of a part of a set, without copies")
    command.add_argument("--root", type=Path, required=True, help="the set: a folder or a list")
    command.add_argument("--out", type=Path, required=True, help="the CSV file to write; give it as data.root")
    part = command.add_mutually_exclusive_group(required=True)
    part.add_argument("--classes", type=_names, help="names, separated by commas")
    part.add_argument("--share", type=float, help="share of each class's training images, e.g. 0.1")
    return parser


def _run(given: argparse.Namespace) -> int:
    match given.set:
        case "digits":
            line = digits(given.out)
        case "fashion_mnist":
            line = fashion_mnist(given.source, given.out)
        case "imagenet":
            encoding = Encoding(given.resize, given.quality) if given.resize else None
            line = imagenet(given.archives, given.out, workers=given.workers, encoding=encoding)
        case _:
            line = subset(given.root, given.out, classes=given.classes, share=given.share)
    sys.stdout.write(f"{line}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    given = _arguments().parse_args(arguments)
    return exit_code(lambda: _run(given), given.out)


if __name__ == "__main__":
    sys.exit(main())
