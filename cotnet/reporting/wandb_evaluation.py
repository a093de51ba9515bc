"""An evaluation as W&B shows it: figures, a table of predictions with images, per-class accuracy, confusion,
reliability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from data.sets.image_set import thumbnail

if TYPE_CHECKING:
    import wandb

THUMBNAIL: Final = 96  # height or width of the images, in pixels
COLUMNS: Final = ("file", "image", "label", "top1", "p1", "correct")
RELIABILITY: Final = ("confidence", "accuracy", "line", "images")
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # column names, rows


@dataclass(frozen=True, kw_only=True)
class EvaluationContent:
    """What there is to show. Classes are what people call them.

    `predictions`: rows of COLUMNS without `image`. `root`: the folder of their files. `labels`, `predicted`: class
    numbers of every image, for the confusion matrix of `classes`; without classes there is none. `reliability`:
    `confidence`, `accuracy` and `images` of each bin. `pictures`: PNG files, each with a sentence about it.
    `training_run`: W&B's id of the run that made the weights, and its project; empty if unknown.
    """

    figures: Mapping[str, Any]
    root: Path
    predictions: Sequence[Sequence[Any]]
    tables: Mapping[str, Table]
    classes: Sequence[str] = ()
    labels: Sequence[int] = ()
    predicted: Sequence[int] = ()
    reliability: Sequence[Mapping[str, float]] = ()
    pictures: Sequence[tuple[Path, str]] = ()
    training_run: tuple[str, str] | None = None


def show(run: "wandb.Run", content: EvaluationContent) -> None:
    """The figures as the run's summary, then everything else as one row."""
    import wandb

    run.summary.update(dict(content.figures))
    run_id, project = content.training_run or ("", "")
    if not run.offline and project == run.project and run.url:
        run.config.update({"training_url": f"{run.url.rpartition('/')[0]}/{run_id}"})
    rows = [[file, wandb_image(content.root / file), *rest] for file, *rest in content.predictions]
    tables = {"predictions": (COLUMNS, rows), **content.tables} if rows else content.tables
    logged: dict[str, Any] = {
        name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        for name, (columns, rows) in tables.items()
    }
    if content.pictures:
        shown = [[wandb.Image(str(png)), alt] for png, alt in content.pictures]
        logged["pictures"] = wandb.Table(columns=["picture", "about"], data=shown)
    if content.classes:
        logged["confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=list(content.labels), preds=list(content.predicted), class_names=list(content.classes)
        )
    if content.reliability:
        table = wandb.Table(columns=list(RELIABILITY), data=reliability_rows(content.reliability))
        title = "Accuracy over confidence"
        logged["reliability"] = wandb.plot.line(table, x="confidence", y="accuracy", stroke="line", title=title)
    run.log(logged)


def reliability_rows(bins: Sequence[Mapping[str, float]]) -> list[list[Any]]:
    """The accuracy of each bin over its mean confidence, and the diagonal; empty bins are left out."""
    filled = [(one["confidence"], one["accuracy"], int(one["images"])) for one in bins if one["images"]]
    measured = [[confidence, accuracy, "measured", images] for confidence, accuracy, images in filled]
    return measured + [[confidence, confidence, "calibrated", images] for confidence, _, images in filled]


def wandb_image(path: Path) -> "wandb.Image | None":
    """The image at most 96 pixels high and wide, as JPEG; None if it cannot be read."""
    import wandb

    small = thumbnail(path, THUMBNAIL)
    return None if small is None else wandb.Image(small, file_type="jpg")
