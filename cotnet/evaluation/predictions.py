"""The table of an evaluation, a row per image, and the files that hold it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from cotnet.engine.evaluation import BEST, BRIER, CLASSES, LOSS, PROBABILITIES
from cotnet.errors import InputError
from cotnet.files import write_atomic

FORMATS: Final = ("csv", "parquet", "imagenet_x")
HEADER: Final = (
    *("file", "label"),
    *(f"top{place}" for place in range(1, BEST + 1)),
    *(f"p{place}" for place in range(1, BEST + 1)),
    *("loss", "correct"),
)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """N images; classes are indices into the model's classes."""

    files: tuple[str, ...]  # N paths below the set's folder
    labels: np.ndarray  # (N,) int64; -1: without
    best: np.ndarray  # (N, 5) int64, the best class first; -1 where the model has fewer
    probabilities: np.ndarray  # (N, 5) float64
    loss: np.ndarray  # (N,) float64; NaN without a label, or with several
    brier: np.ndarray  # (N,) float64; likewise
    label_sets: tuple[frozenset[int], ...] | None = None  # of sets where any of several classes is right
    logits: np.ndarray | None = None  # (N, C) float32, in memory only
    targets: np.ndarray | None = None  # (N,) the column of `logits` that is each image's label

    @property
    def confidence(self) -> np.ndarray:
        return self.probabilities[:, 0]

    @property
    def hits(self) -> np.ndarray:
        """(N, 5) bool: whether each of the best classes is right."""
        if self.label_sets is None:
            return np.asarray(self.best == np.where(self.labels < 0, -2, self.labels)[:, None])
        rows = zip(self.best.tolist(), self.label_sets, strict=True)
        return np.array([[one in right for one in row] for row, right in rows], dtype=bool).reshape(-1, BEST)

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool: whether the best class is right."""
        return np.asarray(self.hits[:, 0])

    @property
    def in_best(self) -> np.ndarray:
        """(N,) bool: whether one of the five best classes is right."""
        return np.asarray(self.hits.any(axis=1))

    def rows(self, chosen: np.ndarray) -> "Predictions":
        """Some of the images, by index or mask (N,)."""
        index = np.arange(len(self.files))[chosen]
        sets = None if self.label_sets is None else tuple(self.label_sets[row] for row in index)
        return Predictions(
            files=tuple(self.files[row] for row in index),
            labels=self.labels[index],
            best=self.best[index],
            probabilities=self.probabilities[index],
            loss=self.loss[index],
            brier=self.brier[index],
            label_sets=sets,
            logits=None if self.logits is None else self.logits[index],
            targets=None if self.targets is None else self.targets[index],
        )


def from_table(
    table: torch.Tensor,
    files: Sequence[str],
    labels: np.ndarray,
    *,
    columns: np.ndarray | None = None,
    label_sets: Sequence[frozenset[int]] | None = None,
    logits: np.ndarray | None = None,
) -> Predictions:
    """The predictions of a table (N, COLUMNS) of engine.evaluation.

    labels: (N,) as the table was made with, -1 for none. columns: the classes that the logits were restricted to; best
    classes and labels become classes of the model again. label_sets: the classes that are right for each image.
    """
    values = table.numpy()
    best, wanted = values[:, CLASSES].astype(np.int64), np.asarray(labels, dtype=np.int64)
    if columns is not None:
        back = np.append(columns, -1)  # -1 stays -1
        best, wanted = back[best], back[wanted]
    unknown = (wanted < 0) | (label_sets is not None)
    return Predictions(
        files=tuple(files),
        labels=wanted,
        best=best,
        probabilities=values[:, PROBABILITIES],
        loss=np.where(unknown, np.nan, values[:, LOSS]),
        brier=np.where(unknown, np.nan, values[:, BRIER]),
        label_sets=None if label_sets is None else tuple(label_sets),
        logits=None if unknown.any() else logits,
        targets=np.asarray(labels, dtype=np.int64),
    )


def write(predictions: Predictions, folder: Path, formats: Sequence[str], *, words: Sequence[str] = ()) -> None:
    """predictions.csv, predictions.parquet or imagenet_x.csv; `words` adds the best classes by name.

    Raises:
        InputError: parquet without pyarrow.
    """
    header = (*HEADER, *(f"class{place}" for place in range(1, BEST + 1) if words))
    if "csv" in formats:
        write_csv(folder / "predictions.csv", header, _rows(predictions, words))
    if "parquet" in formats:
        pyarrow = require_parquet()
        columns = [list(column) for column in zip(*_rows(predictions, words), strict=True)] or [[] for _ in header]
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(header, columns, strict=True))), sink)
        write_atomic(folder / "predictions.parquet", sink.getvalue())
    if "imagenet_x" in formats:  # as ImageNet-X's tools read predictions (Idrissi et al. 2022)
        names = [file.rpartition("/")[2] for file in predictions.files]
        rows = zip(names, predictions.best[:, 0].tolist(), predictions.confidence.tolist(), strict=True)
        write_csv(folder / "imagenet_x.csv", ("file_name", "predicted_class", "predicted_probability"), rows)


def require_parquet() -> Any:
    """pyarrow. Raises InputError without it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("predictions=[parquet] needs pyarrow; pip install 'cotnet[parquet]'") from None
    return pyarrow


def _rows(predictions: Predictions, words: Sequence[str]) -> list[list[Any]]:
    labels = [None if label < 0 else label for label in predictions.labels.tolist()]
    best = [[None if one < 0 else one for one in row] for row in predictions.best.tolist()]
    known = predictions.label_sets is not None or not (predictions.labels < 0).any()
    correct = [bool(one) for one in predictions.correct] if known else [None] * len(labels)
    loss = [None if np.isnan(one) else one for one in predictions.loss.tolist()]
    parts = zip(predictions.files, labels, best, predictions.probabilities.tolist(), loss, correct, strict=True)
    return [
        [file, label, *row, *shares, lost, right, *(None if one is None else words[one] for one in row if words)]
        for file, label, row, shares, lost, right in parts
    ]


def write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    """A CSV file, whole or not at all; None is an empty cell, floats keep every digit."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([int(cell) if isinstance(cell, bool) else cell for cell in row] for row in rows)
    write_atomic(path, text.getvalue().encode(errors="surrogateescape"))


def read(path: Path, *, labelled: bool = True) -> Predictions:
    """A predictions.csv. labelled: it must be of images with labels.

    Raises:
        InputError: it cannot be read, or a column or the labels are missing.
    """
    try:
        with path.open(newline="", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        best = [[int(row[f"top{place}"] or -1) for place in range(1, BEST + 1)] for row in rows]
        shares = [[float(row[f"p{place}"]) for place in range(1, BEST + 1)] for row in rows]
        labels = np.array([int(row["label"] or -1) for row in rows], dtype=np.int64)
        loss = np.array([float(row["loss"] or "nan") for row in rows])
        files = tuple(row["file"] for row in rows)
        right = [row["correct"] for row in rows]
    except FileNotFoundError:
        raise InputError(f"no predictions at {path}; give the predictions.csv of an evaluation") from None
    except (KeyError, ValueError, TypeError, OSError, csv.Error) as error:
        raise InputError(f"{path}: not a whole table of predictions ({error}); evaluate again") from None
    if not rows:
        raise InputError(f"{path}: holds no image; evaluate again")
    if labelled and "" in right:
        raise InputError(f"{path}: images without labels have no accuracy; give predictions of a labelled set")
    best_classes = np.array(best, dtype=np.int64)
    several = tuple(  # a set of labels shows only in `correct`
        frozenset(row[:1]) if one == "1" else frozenset() for row, one in zip(best, right, strict=True)
    )
    single = bool(((best_classes[:, 0] == labels) == (np.array(right) == "1")).all())
    return Predictions(
        files=files,
        labels=labels,
        best=best_classes,
        probabilities=np.array(shares),
        loss=loss,
        brier=np.full(len(rows), np.nan),
        label_sets=None if single else several,
    )
