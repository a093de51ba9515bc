"""The test sets that ImageNet classifiers are judged by, as their authors evaluate them.

| set | images | how they are judged |
|---|---|---|
| imagenet | the val split | over 1,000 classes |
| real | the val split, without images that have no label | any label is right (Beyer et al. 2020) |
| v2 | three sets, folders 0 to 999 | as imagenet (Recht et al. 2019) |
| a, r | 200 classes each | over those classes (Hendrycks et al. 2021) |
| sketch | 1,000 classes | as imagenet (Wang et al. 2019) |
| c | 15 corruptions in 5 strengths, 4 extra | not resized; mCE (Hendrycks and Dietterich 2019) |
| objectnet | 113 folders that overlap with ImageNet | over their classes, without the border (Barbu et al. 2019) |
"""

import dataclasses
import hashlib
import json
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from cotnet.errors import InputError
from data.sets.image_set import ImageSet, complete_set, some
from data.sets.read import list_folders, read_folders

SETS: Final = ("imagenet", "real", "v2", "a", "r", "sketch", "c", "objectnet")
NEED_VAL: Final = ("imagenet", "real")  # and a, r for their clean counterparts, if it is there
FOLDERS: Final[dict[str, tuple[str, ...]]] = {  # below suite.root
    "imagenet": ("imagenet", "ILSVRC2012", "imagenet-1k"),
    "v2": ("imagenetv2-matched-frequency", "imagenetv2"),
    "v2-threshold0.7": ("imagenetv2-threshold0.7",),
    "v2-top-images": ("imagenetv2-top-images",),
    "a": ("imagenet-a",),
    "r": ("imagenet-r",),
    "sketch": ("imagenet-sketch", "sketch"),
    "c": ("imagenet-c",),
    "objectnet": ("objectnet-1.0", "objectnet"),
}
BORDER: Final = 2  # pixels, of ObjectNet's images
C_SIZE: Final = 224  # pixels of ImageNet-C's images


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Images with what their protocol asks for. `images.labels`: positions in `columns`, else classes of the model."""

    name: str
    images: ImageSet
    columns: np.ndarray | None = None  # the classes that the logits are restricted to, ascending
    label_sets: tuple[frozenset[int], ...] | None = None  # the classes that are right for each image
    border: int = 0  # pixels cut off on each side before resizing
    resize: bool = True
    classes: str | None = None  # for the figures: how many classes are among the images, if not all


@cache
def synsets() -> tuple[str, ...]:
    """ImageNet's 1,000 classes in the order of every classifier's outputs."""
    return tuple(asset("imagenet_synsets.txt").decode().split())


@cache
def corruptions() -> dict[str, Any]:
    """`order` of the 15 that count, `alexnet_error` of each, `groups`, `severities`."""
    content: dict[str, Any] = json.loads(asset("imagenet_c.json"))
    return content


def asset(name: str) -> bytes:
    content = pkgutil.get_data("cotnet.evaluation", f"assets/{name}")
    assert content is not None
    return content


def labels_of_folders(
    folder: Path, names: Sequence[str], classes: Sequence[str], *, numbered: bool = True
) -> np.ndarray:
    """The class of each folder, by its name. `numbered`: names that are all numbers count the classes instead, read as
    numbers: sorted as text, 10 comes before 2.

    Raises:
        InputError: names that are neither.
    """
    where = {name: number for number, name in enumerate(classes)}
    if numbered and all(name.isdecimal() for name in names) and not set(names) <= where.keys():
        where = {name: int(name) for name in names if int(name) < len(classes)}
    if unknown := [name for name in names if name not in where]:
        raise InputError(
            f"{folder}: {len(unknown)} of {len(names)} folders are no classes of the model, among them "
            f"{', '.join(unknown[:5])}; its classes begin with {', '.join(classes[:5])}"
        )
    return np.array([where[name] for name in names], dtype=np.int64)


def with_labels(images: ImageSet, labels: np.ndarray) -> ImageSet:
    """The set with each of its classes' label replaced. labels: (classes,)."""
    return dataclasses.replace(images, labels=labels[images.labels])


def chosen(images: ImageSet, rows: np.ndarray) -> ImageSet:
    """Some of the images, by index or mask (N,)."""
    index = np.arange(len(images.files))[rows]
    files = tuple(images.files[row] for row in index)
    few = complete_set(images.root, files, labels=images.labels[index], classes=images.classes)
    return dataclasses.replace(few, sizes=None if images.sizes is None else images.sizes[index])


def sample(images: ImageSet, count: int | None) -> ImageSet:
    """`count` images, by a hash of their names: the same ones on every machine. None: all."""
    if count is None or count >= len(images.files):
        return images
    keys = [hashlib.blake2b(file.encode(errors="surrogateescape")).digest() for file in images.files]
    return chosen(images, np.sort(np.array(sorted(range(len(keys)), key=keys.__getitem__)[:count])))


def find(root: Path, name: str) -> Path | None:
    """The folder of a set below `root`, under one of its usual names, or None."""
    places = (root / f"{folder}{end}" for folder in FOLDERS[name] for end in ("", "-format-val"))
    return next((place for place in places if place.is_dir()), None)


def evaluation_sets(names: Sequence[str], root: Path | None, val: ImageSet | None) -> list[EvaluationSet]:
    """The sets of a suite. One name: `root` may be that set's own folder. Several: those that are found below `root`.

    val: ImageNet's val split, of `data.root` or found below `root`.

    Raises:
        InputError: nothing is found, or a set is not in its authors' layout.
    """
    found: list[EvaluationSet] = []
    for name in names:
        if name == "imagenet" and val is not None:
            found.append(EvaluationSet(name="imagenet", images=val))
        if name == "real" and val is not None:
            found += real(root, val)
        for variant in (one for one in FOLDERS if one.split("-")[0] == name and name in _READERS):
            folder = None if root is None else find(root, variant)
            if folder is None and len(names) == 1 and variant == name:
                folder = root
            if folder is not None:
                found += _READERS[name](variant, folder, val)
    if not found:
        wanted = "; ".join(f"{name}: {' or '.join(FOLDERS.get(name, ('real.json',)))}" for name in names)
        raise InputError(f"suite.root={root}: none of the suite's files are there ({wanted}); set suite.root=DIR")
    return found


def _read(folder: Path) -> ImageSet:
    return read_folders(folder.parent, folder.name)


def _by_class(name: str, folder: Path, val: ImageSet | None) -> list[EvaluationSet]:  # noqa: ARG001
    images = _read(folder)
    labels = labels_of_folders(folder, images.classes, synsets())
    return [EvaluationSet(name=name, images=with_labels(images, labels), classes=_some_of(images, 1000))]


def _some_of(images: ImageSet, total: int) -> str | None:
    return None if len(images.classes) == total else f"{len(images.classes)} of {total}"


def _restricted(name: str, folder: Path, val: ImageSet | None) -> list[EvaluationSet]:
    """ImageNet-A or -R, and the val images of the same classes."""
    columns = np.array(json.loads(asset("imagenet_a_r.json"))[name]["indices"], dtype=np.int64)
    names = [synsets()[column] for column in columns]
    images = _read(folder)
    labels = labels_of_folders(folder, images.classes, names, numbered=False)
    own, some_of = with_labels(images, labels), _some_of(images, len(columns))
    found = [EvaluationSet(name=name, images=own, columns=columns, classes=some_of)]
    if val is not None:
        few = chosen(val, np.isin(val.labels, columns))
        few = dataclasses.replace(few, labels=np.searchsorted(columns, few.labels))
        found.append(EvaluationSet(name=f"{name}-clean", images=few, columns=columns))
    return found


def real(root: Path | None, val: ImageSet) -> list[EvaluationSet]:
    """The val split with the labels of real.json (below `root`, else timm's copy): entry i is of ILSVRC2012_val_{i+1}.

    Raises:
        InputError: no file of labels, one of another length, or images with other names.
    """
    own = None if root is None else root / "real.json"
    if own is not None and own.is_file():
        content, where = own.read_bytes(), str(own)
    else:
        where = "timm"
        try:
            content = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json") or b""
        except ImportError:
            raise InputError(
                "suite=real needs real.json in suite.root, or timm's copy: pip install 'cotnet[timm]'"
            ) from None
    try:
        labels = [frozenset(map(int, row)) for row in json.loads(content)]
    except (ValueError, TypeError):
        raise InputError(f"{where}: not a list of lists of classes; get ReaL's real.json again") from None
    if len(labels) != 50_000:
        raise InputError(f"{where}: has labels of {len(labels)} images, not of 50,000; get ReaL's real.json again")
    numbers = [re.fullmatch(r"ILSVRC2012_val_(\d{8})\.\w+", Path(file).name) for file in val.files]
    if other := [file for file, number in zip(val.files, numbers, strict=True) if number is None]:
        raise InputError(f"{val.root}: ReaL goes by the names ILSVRC2012_val_NNNNNNNN; other names are {some(other)}")
    sets = [labels[int(number[1]) - 1] for number in numbers if number]
    labelled = np.array([bool(one) for one in sets])
    return [EvaluationSet(name="real", images=chosen(val, labelled), label_sets=tuple(filter(None, sets)))]


def _corrupted(name: str, folder: Path, val: ImageSet | None) -> list[EvaluationSet]:  # noqa: ARG001
    """One set for each corruption; its five strengths are told apart by the first part of a file's path."""
    known = [one for group in corruptions()["groups"].values() for one in group]
    places = {group: folder / group for group in known if (folder / group).is_dir()}
    for group, members in corruptions()["groups"].items():  # as the archives unpack
        places |= {one: folder / group / one for one in members if (folder / group / one).is_dir()}
    if not places:
        raise InputError(f"{folder}: holds none of ImageNet-C's corruptions, such as {', '.join(known[:5])}")
    return [_corruption(one, places[one]) for one in known if one in places]


def _corruption(name: str, folder: Path) -> EvaluationSet:
    files: list[str] = []
    labels: list[int] = []
    classes: Iterable[str] = ()
    strengths = [one for one in map(str, corruptions()["severities"]) if (folder / one).is_dir()]
    if not strengths:
        raise InputError(f"{folder}: holds none of the strengths 1 to 5, each a folder of class folders")
    for severity in strengths:
        classes = names = list_folders(folder, severity)
        numbers = labels_of_folders(folder / severity, list(names), synsets())
        for number, (inside, found) in zip(numbers, names.items(), strict=True):
            files += [f"{severity}/{inside}/{file}" for file in found]
            labels += [int(number)] * len(found)
    images = complete_set(folder, tuple(files), labels=np.array(labels, dtype=np.int64), classes=tuple(classes))
    return EvaluationSet(name=f"c/{name}", images=images, resize=False, classes=_some_of(images, 1000))


def _objectnet(name: str, folder: Path, val: ImageSet | None) -> list[EvaluationSet]:  # noqa: ARG001
    overlap: dict[str, list[int]] = json.loads(asset("objectnet_folder_to_imagenet_indices.json"))
    images = _read(folder / "images" if (folder / "images").is_dir() else folder)
    shared = [one for one in images.classes if one in overlap]
    if not shared:
        raise InputError(
            f"{folder}: none of its folders is one of ObjectNet's that overlap with ImageNet; it has "
            f"{', '.join(images.classes[:5])}, expected are {', '.join(list(overlap)[:5])}"
        )
    rows = np.isin(images.labels, [images.classes.index(one) for one in shared])
    images = chosen(images, rows)
    columns = np.unique([column for right in overlap.values() for column in right])
    sets = tuple(frozenset(overlap[images.classes[label]]) for label in images.labels)
    first = np.searchsorted(columns, [min(right) for right in sets])
    some_of = None if len(shared) == len(overlap) else f"{len(shared)} of {len(overlap)}"
    images = dataclasses.replace(images, labels=first)
    return [EvaluationSet(name=name, images=images, columns=columns, label_sets=sets, border=BORDER, classes=some_of)]


_READERS: Final = {
    "v2": _by_class,
    "sketch": _by_class,
    "a": _restricted,
    "r": _restricted,
    "c": _corrupted,
    "objectnet": _objectnet,
}


def mean_corruption_error(errors: Mapping[str, float]) -> float | None:
    """mCE in percent from the mean error of each of the 15 corruptions over its strengths, in percent; None if one is
    missing. The AlexNet errors are looked up by name."""
    order, alexnet = corruptions()["order"], corruptions()["alexnet_error"]
    if not set(order) <= errors.keys():
        return None
    return float(np.mean([errors[name] / alexnet[name] for name in order]))
