"""Small sets: scikit-learn's digits, Fashion-MNIST from its four idx files, and a part of any set as a CSV list."""

import csv
import gzip
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cotnet.errors import DataError
from cotnet.files import write_text
from data.loading.random import Stream, hashes
from data.prepare.commands import claimed
from data.sets.image_set import ImageSet, some
from data.sets.read import HEADER, WORDS, class_words, read_splits

_DIGITS: Final = 1797
_SIDE: Final = 32  # 8 in the source
_VAL_SHARE: Final = 0.2
_CLOTHES: Final = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def digits(out: Path) -> str:
    """Write out/{train,val}/<digit>/<number>.png, with a fixed, stratified split; returns the line for people.

    The 8x8 originals of 17 grey levels are stored at 32x32 (bicubic), because crop boxes are in whole pixels of the
    file: a small net at 32 px with crops of 0.8 to 1 reached 99.6 %, with 8x8 98.9 % (mean of three seeds). Raises
    DataError without scikit-learn, and if another process writes `out` or it holds something else.
    """
    if line := _already_there(out, _DIGITS):
        return line
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError("digits come with scikit-learn, which is missing; pip install scikit-learn") from error
    source = load_digits()
    validation = share_of_each_class(source.target, _VAL_SHARE)

    def pictures() -> Iterator[tuple[str, Image.Image]]:
        for number, (image, label) in enumerate(zip(source.images, source.target, strict=True)):
            split, levels = "val" if validation[number] else "train", np.rint(image * (255 / 16)).astype(np.uint8)
            picture = Image.fromarray(levels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            yield f"{split}/{label}/{number:04d}.png", picture

    return _write_set(out, pictures(), images=_DIGITS, kind="digits")


def share_of_each_class(labels: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool, drawn by hash: at least one of each class; the same at every call, the smaller within the larger."""
    keys = hashes(0, 0, Stream.ORDER, np.arange(len(labels)))
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(keys[members])[: max(1, round(share * len(members)))]]] = True
    return chosen


def fashion_mnist(source: Path, out: Path) -> str:
    """Write out/{train,val}/<label>_<word>/<number>.png from the files in `source`; returns the line for people.

    The files may be packed (.gz). Raises DataError for missing and malformed files, and if another process writes `out`
    or it holds something else.
    """
    splits = {
        split: (_idx(source, f"{name}-images-idx3-ubyte", dimensions=3), _idx(source, f"{name}-labels-idx1-ubyte"))
        for split, name in (("train", "train"), ("val", "t10k"))
    }
    if any(len(images) != len(labels) for images, labels in splits.values()):
        raise DataError(f"{source}: another number of labels than of images; download the four files again")
    total = sum(len(labels) for _, labels in splits.values())
    if line := _already_there(out, total):
        return line

    def pictures() -> Iterator[tuple[str, Image.Image]]:
        for split, (images, labels) in splits.items():
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield f"{split}/{label}_{_CLOTHES[label]}/{number:05d}.png", Image.fromarray(image)

    return _write_set(out, pictures(), images=total, kind="classes")


def _idx(source: Path, name: str, *, dimensions: int = 1) -> np.ndarray:
    """The uint8 array of an idx file: two zero bytes, type 8, number of dimensions, their sizes, the values."""
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


def _write_set(out: Path, pictures: Iterable[tuple[str, Image.Image]], *, images: int, kind: str) -> str:
    """Write named pictures into a folder beside `out` and rename it: the set appears complete or not at all."""
    full, written = out.resolve(), Counter[str]()
    if not full.parent.exists():
        full.parent.mkdir(parents=True)
    with claimed(out):
        if line := _already_there(out, images):  # another process was faster
            return line
        partial = full.parent / f"{full.name}.partial"
        if partial.exists():  # left by a killed run
            shutil.rmtree(partial)
        for name, picture in pictures:
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            written[name.split("/")[0]] += 1
        partial.rename(full)
    return f"{out}: {written['train']} training and {written['val']} validation images of 10 {kind}"


def _already_there(out: Path, images: int) -> str | None:
    """The line for people if `out` is complete, None if it is empty. Raises DataError if it holds something else."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: a file; give a folder as --out")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    train, val = (len(split.files) for split in read_splits(out))
    if train + val != images:
        raise DataError(f"{out}: holds {train + val} images, not {images}; remove it or give another --out")
    return f"{out}: already there ({train} training and {val} validation images)"


def subset(root: Path, out: Path, *, classes: Sequence[str] | None, share: float | None) -> str:
    """Write a list of some classes, or of a share of each class's training images; returns the line for people.

    The validation split keeps all images of the chosen classes. Raises DataError for impossible arguments and if
    another process writes the list.
    """
    if share is not None and not 0 < share <= 1:
        raise DataError(f"--share {share} is not in (0, 1]")
    if out.suffix.lower() != ".csv":
        raise DataError(f"{out}: a list ends in .csv; give another --out")
    train, val = read_splits(root)
    if unknown := sorted(set(classes or ()) - set(train.classes)):
        raise DataError(f"{root}: has no classes {some(unknown)}; it has {some(train.classes)}")
    chosen = classes or train.classes
    rows = {"train": _rows(train, out.parent, classes=chosen, share=1.0 if share is None else share)}
    rows["val"] = _rows(val, out.parent, classes=chosen, share=1.0)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([HEADER, *((split, *row) for split, part in rows.items() for row in part)])
    named = zip(train.classes, class_words(root, train.classes), strict=True)
    words, words_file = {name: word for name, word in named if name in chosen}, out.with_suffix(f".{WORDS}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with claimed(out):
        if any(name != word for name, word in words.items()):
            write_text(words_file, json.dumps(words, indent=0, ensure_ascii=False))
        else:  # an earlier list's
            words_file.unlink(missing_ok=True)
        write_text(out, text.getvalue())
    counts = f"{len(rows['train'])} training and {len(rows['val'])} validation images"
    return f"{out}: {counts} of {len(chosen)} classes"


def _rows(image_set: ImageSet, folder: Path, *, classes: Sequence[str], share: float) -> list[tuple[str, str]]:
    """(path relative to the folder, class) of the chosen images."""
    wanted = np.isin(image_set.labels, [label for label, name in enumerate(image_set.classes) if name in classes])
    indices = np.flatnonzero(wanted & share_of_each_class(image_set.labels, share)).tolist()
    return [(os.path.relpath(image_set.path(i), folder), image_set.classes[image_set.labels[i]]) for i in indices]
