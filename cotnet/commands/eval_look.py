"""Pictures of where a network looks: of any images, for cotnet/look.py, and of an evaluation's mistakes."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cotnet import parts, records
from cotnet.commands import eval_model
from cotnet.commands.eval_sets import unlabelled, words_of
from cotnet.commands.eval_worker import Found, Leaf
from cotnet.commands.tool_keys import FIXED, check_tool_keys, single_checkpoint
from cotnet.config.claims import claimed
from cotnet.config.compose import Config
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision
from cotnet.engine.signals import StopRequest
from cotnet.errors import RunError
from cotnet.evaluation.look import Look, NoFeatureMapError, cell, highest, look
from cotnet.evaluation.look_figure import draw
from cotnet.evaluation.predictions import Predictions
from cotnet.evaluation.suites import EvaluationSet, chosen
from cotnet.models.contextual import operator_line
from cotnet.reporting.terminal import say
from cotnet.settings import DataSettings, Section, setting
from data.sets.image_set import ImageSet, image_size

FOLDER: Final = "look"


@dataclass(frozen=True, kw_only=True)
class LookSettings(Section):
    """The keys of cotnet/look.py beside the groups `backbone`, `data` and `loader`."""

    checkpoint: Path = setting("a checkpoint, a file of published weights, or a run's folder for its `best.pt`")
    images: Path | tuple[Path, ...] = setting("a folder or list of images")
    weights: Literal["ema", "raw"] = setting("the averaged weights, or those of the last step")
    output_dir: str = setting("folder of the pictures; null: `outputs/look/` and a name made of the overrides")
    position: tuple[float, float] | None = setting(
        "row and column, as shares of the crop's height and width from its top left corner, whose kernels or attention "
        "are shown; null: where Grad-CAM is highest",
        least=0,
        most=1,
    )


def run(config: Config) -> int:
    """Writes a picture of each image into `output_dir`; 0.

    Raises:
        InputError: the checkpoint, an image or a setting is wrong, or the network has no feature map.
    """
    check_tool_keys(config, LookSettings)
    position = None if config["position"] is None else tuple(map(float, config["position"]))
    read = eval_model.read({**config, **FIXED}, [single_checkpoint(config)])
    words = words_of(read.config, read.classes)[1]
    images = unlabelled(config["images"], len(words))
    for row in range(len(images.files)):
        image_size(images.path(row))  # before anything is written: is it an image at all?
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(config["output_dir"])
    data = eval_model.data_settings(read.config)
    if line := operator_line(read.model, device):
        say(line)
    found = looks(read.model.to(device).eval(), images, config=read.config, data=data, position=position)
    with claimed(folder):
        for number, (file, (pixels, seen)) in enumerate(zip(images.files, found, strict=True), start=1):
            name = Path(file).name.encode(errors="replace").decode()  # a name may hold bytes that are no text
            png, predicted = folder / f"{number:04}-{Path(name).stem}.png", words[seen.target]
            line = f"{predicted} ({100 * seen.probability:.1f} %)"
            try:
                draw(png, pixels, seen, title=f"{name}: {line}", name=predicted)
            except OSError as error:
                raise RunError(f"cannot write {png}: {error.strerror}; make room there") from None
            say(f"{png}: {line}")
    return 0


def looks(
    model: nn.Module,
    images: ImageSet,
    *,
    config: Config,
    data: DataSettings,
    targets: Sequence[int] | None = None,
    position: Any = None,
    border: int = 0,
) -> Iterator[tuple[Tensor, Look]]:
    """The pixels (3, S, S) uint8 of each image, as the evaluation crops it, and what the network does with it.

    config: completed. targets: the class that Grad-CAM explains, of each image; default the predicted one. border: as
    in EvaluationSet. Raises NoFeatureMapError.
    """
    device = next(model.parameters()).device
    alone = Ranks(rank=0, world_size=1, device=device)
    prepare = parts.evaluation_transform(data, Precision(name=config["precision"], device=device))
    single = dataclasses.replace(data, eval_batch_size=1)
    loader = parts.evaluation_loader(config, single, images, alone, border=border)
    try:
        for row, batch in enumerate(loader.batches(0)):
            target = None if targets is None else targets[row]
            yield batch.images[0].cpu(), look(model, prepare(batch.images), target=target, position=position)
    finally:
        loader.close()


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The most confident mistakes of one evaluation, kept until all figures are written."""

    folder: Path  # of the evaluation
    model: nn.Module
    data: DataSettings
    chosen: EvaluationSet  # of these images alone
    predictions: Predictions


def most_confident(leaf: Leaf, found: Found, *, count: int) -> Mistakes:
    """The `count` most confident mistakes; none of images without labels."""
    table = found.predictions
    wrong = np.flatnonzero(~table.correct & np.isfinite(table.confidence) & found.labelled)
    rows = table.rows(wrong[np.argsort(-table.confidence[wrong], kind="stable")][:count])
    where = {file: row for row, file in enumerate(found.chosen.images.files)}
    images = chosen(found.chosen.images, np.array([where[file] for file in rows.files], dtype=np.int64))
    few = dataclasses.replace(found.chosen, images=images, label_sets=rows.label_sets)
    return Mistakes(folder=Path(leaf.folder), model=found.model, data=found.data, chosen=few, predictions=rows)


def draw_mistakes(config: Config, mistakes: Mistakes, *, words: Sequence[str], stop: StopRequest) -> None:
    """Writes the pictures into `look/` of the evaluation's folder, and look.json about them; no folder if there are
    none. Ends early when a stop is requested."""
    folder, table = mistakes.folder / FOLDER, mistakes.predictions
    clear(folder)
    if not table.files:
        return
    top1 = table.best[:, 0].tolist()
    given: dict[str, Any] = {"config": config, "data": mistakes.data, "border": mistakes.chosen.border}
    found = looks(mistakes.model, mistakes.chosen.images, targets=top1, **given)
    pictures: list[dict[str, Any]] = []
    try:
        for row, (pixels, seen) in enumerate(found):
            if stop.received:
                clear(folder)
                return
            folder.mkdir(exist_ok=True)
            label, p1 = right_class(table, row), float(table.confidence[row])
            taken = f"{words[top1[row]]} ({100 * p1:.1f} %)"
            png, shown = f"{row + 1:04}.png", dataclasses.replace(seen, probability=p1)
            draw(folder / png, pixels, shown, title=f"{words[label]}, taken for {taken}", name=words[top1[row]])
            alt = f"{table.files[row]}, an image of class {words[label]}, is taken for {taken}; {description(seen)}."
            pictures.append(
                {"file": table.files[row], "label": label, "top1": top1[row], "p1": p1, "png": png, "alt": alt}
            )
    except NoFeatureMapError as error:
        say(f"no pictures of mistakes: {error}")
        return
    records.write_json(folder / "look.json", {"pictures": pictures})


def right_class(table: Predictions, row: int) -> int:
    """The label of an image; the first one of several."""
    return int(table.labels[row]) if table.label_sets is None else min(table.label_sets[row])


def description(seen: Look) -> str:
    """What the picture shows, for people who cannot see it."""
    row, column = cell(highest(seen.heat), (3, 3))
    place = " ".join(filter(None, (("top", "", "bottom")[row], ("left", "", "right")[column]))) or "centre"
    beside = "CoT's local kernels" if seen.kernels else "attention" if seen.attention else ""
    maps = f", beside maps of {beside}" if beside else ""
    return f"Grad-CAM is {f'highest at the {place} of the image' if seen.heat.any() else 'zero everywhere'}{maps}"


def clear(folder: Path) -> None:
    """Removes the pictures of an earlier evaluation in this folder."""
    for old in [*folder.glob("[0-9][0-9][0-9][0-9].png"), *folder.glob("look.json")]:
        old.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
