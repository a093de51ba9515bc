"""Which images an evaluation sees: the val split, a suite's sets, or images without labels."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cotnet import image_parts
from cotnet.commands import eval_model
from cotnet.config.build import typed
from cotnet.config.compose import Config
from cotnet.errors import DataError, InputError
from cotnet.evaluate_settings import EvaluationData, SuiteSettings
from cotnet.evaluation import suites
from cotnet.evaluation.suites import EvaluationSet, labels_of_folders, sample, synsets
from data.sets.image_set import EXTENSIONS, ImageSet, complete_set, some
from data.sets.read import class_words, read_split


def read_sets(config: Config, names: Sequence[str] | None) -> list[EvaluationSet]:
    """The sets of a completed configuration. names: the model's classes, None if unknown.

    Raises:
        InputError: files are missing, or classes are not the model's.
    """
    if config["images"] is not None:
        return [EvaluationSet(name="images", images=unlabelled(config["images"], config["backbone"]["num_classes"]))]
    if config["suite"] is None:
        return [_val_split(config, names)]
    suite = typed(SuiteSettings, config["suite"], "suite")
    if unknown := [name for name in suite.sets if name not in suites.SETS]:
        raise InputError(f"suite.sets: {', '.join(unknown)} unknown; valid: {', '.join(suites.SETS)}")
    if config["backbone"]["num_classes"] != len(synsets()):
        name = "robustness" if len(suite.sets) > 1 else suite.sets[0]
        count = config["backbone"]["num_classes"]
        raise InputError(f"suite={name} is for models of ImageNet's 1,000 classes; this one has {count}")
    try:
        found = suites.evaluation_sets(suite.sets, suite.root, _imagenet(config, suite))
    except DataError as error:
        raise InputError(f"suite.root: {error}") from None
    return [_sampled(one, suite.images) for one in found]


def _sampled(one: EvaluationSet, count: int | None) -> EvaluationSet:
    few = sample(one.images, count)
    if len(few.files) == len(one.images.files):
        return one
    where = {file: row for row, file in enumerate(one.images.files)}
    sets = None if one.label_sets is None else tuple(one.label_sets[where[file]] for file in few.files)
    return dataclasses.replace(one, images=few, label_sets=sets)


def _imagenet(config: Config, suite: SuiteSettings) -> ImageSet | None:
    """ImageNet's val split, of data.root or below suite.root, its labels by the names of its folders."""
    root = config["data"]["root"]
    if root is None and suite.root is not None:
        root = suites.find(suite.root, "imagenet")
    if root is None:
        if not set(suite.sets).isdisjoint(suites.NEED_VAL) and len(suite.sets) == 1:
            raise InputError(f"suite={suite.sets[0]} is about ImageNet's val split; set data.root=DIR")
        return None
    val = read_split(Path(root), "val")
    return suites.with_labels(val, labels_of_folders(val.root, val.classes, synsets()))


def _val_split(config: Config, names: Sequence[str] | None) -> EvaluationSet:
    """The val split of data.root, with the labels of the model's classes."""
    count = config["backbone"]["num_classes"]
    images = image_parts.read_split(eval_model.data_settings(config), "val")
    subset = typed(EvaluationData, config["evaluation_data"], "data").classes == "subset"
    numbered = not config["own_checkpoint"] and all(one.isdecimal() for one in images.classes)
    if names is None and (subset or numbered) and count == len(synsets()):
        names = synsets()
    if subset and names is None:
        raise InputError("data.classes=subset: the checkpoint does not hold its classes' names; evaluate all classes")
    if not subset:
        _check_classes(config, images, None if numbered else names)
    if names is None or not (subset or numbered):
        return EvaluationSet(name="val", images=images)
    labels = labels_of_folders(images.root, images.classes, names)
    some_of = f"{len(images.classes)} of {count}" if len(images.classes) < count else None
    return EvaluationSet(name="val", images=suites.with_labels(images, labels), classes=some_of)


def _check_classes(config: Config, images: ImageSet, names: Sequence[str] | None) -> None:
    """Raises InputError if model and images have different classes."""
    theirs, ours = config["backbone"]["num_classes"], len(images.classes)
    root, path = config["data"]["root"], config["checkpoint"]
    known = (
        ""
        if names is None
        else f" (the model's begin with {', '.join(names[:5])}, the set's with {', '.join(images.classes[:5])})"
    )
    if theirs != ours:
        few = "; for some of the model's classes set data.classes=subset" if ours < theirs else ""
        raise InputError(
            f"{root} has {ours} classes, the model of {path} {theirs}{known}; "
            f"evaluate it on images of its own classes{few}"
        )
    if names is not None and tuple(names) != images.classes:
        only = [sorted(set(a) - set(b))[:5] for a, b in ((names, images.classes), (images.classes, names))]
        raise InputError(
            f"{root} has other classes than the model of {path}: only the model has {', '.join(only[0])}, only the set "
            f"{', '.join(only[1])}; evaluate it on images of its own classes"
        )


def unlabelled(given: object, classes: int) -> ImageSet:
    """Images of a folder, with those in folders below it, or of a list of files; labels -1.

    Raises:
        InputError: there are none.
    """
    paths = [Path(one) for one in given] if isinstance(given, list | tuple) else [Path(str(given))]
    if len(paths) == 1 and paths[0].is_dir():
        root = paths[0]
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
        files = tuple(str(path.relative_to(root)) for path in found)
    else:
        root, files = Path(), tuple(map(str, paths))
        if missing := [file for file in files if not Path(file).is_file()]:
            raise InputError(f"images: no file {some(missing)}; give a folder, or a list such as [a.jpg,b.jpg]")
    if not files:
        raise InputError(f"images={root}: no image in it; known endings are {', '.join(EXTENSIONS)}")
    labels = np.full(len(files), -1, dtype=np.int64)
    return complete_set(root, files, labels=labels, classes=tuple(map(str, range(classes))))


def words_of(config: Config, names: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The model's classes and what people call them; numbers where nothing is known."""
    count, root = config["backbone"]["num_classes"], config["data"]["root"]
    if names is None and count == len(synsets()):
        names = synsets()
    if names is None and root is not None and config["images"] is None:
        names = image_parts.read_split(eval_model.data_settings(config), "val").classes
    if names is None:
        names = tuple(map(str, range(count)))
    return tuple(names), class_words(Path(root or config["checkpoint"]), tuple(names))
