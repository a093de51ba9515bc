"""One evaluation: a model over a set, on every rank, to a table of predictions on rank 0."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import Loader, evaluate
from cotnet.evaluation.predictions import Predictions, from_table
from cotnet.evaluation.suites import EvaluationSet
from data.sets.image_set import DamagedImageError, ImageSet

MOST_LOGITS: Final = 2**28  # values kept for calibration: 1 GiB


class Restricted(nn.Module):
    """The logits of some classes: (B, classes) -> (B, columns)."""

    def __init__(self, model: nn.Module, columns: np.ndarray) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("columns", torch.from_numpy(columns), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)[:, self.columns]
        return logits


class Tolerant:
    """A loader over the images that decode. The others are in `missing`, {position: reason}; a black image takes their
    place in the batch."""

    def __init__(self, make: Callable[[ImageSet], Any], images: ImageSet) -> None:
        self.missing: dict[int, str] = {}
        self._make, self._images = make, images
        self._loader = make(images)
        self._folder = tempfile.TemporaryDirectory()

    def batches(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """As BatchLoader; from the batch of a damaged image on with a new loader."""
        while True:
            try:
                for batch in self._loader.batches(epoch, first):
                    yield batch
                    first += 1
                return
            except DamagedImageError as error:
                self._replace(error)

    def _replace(self, error: DamagedImageError) -> None:
        paths = {self._images.path(row): row for row in range(len(self._images.files))}
        row = paths[error.path]
        black = Path(self._folder.name) / "black.png"
        Image.new("RGB", (32, 32)).save(black)
        self.missing[row] = error.reason
        files = list(self._images.files)
        files[row] = str(black)
        sizes = None if self._images.sizes is None else self._images.sizes.copy()
        if sizes is not None:
            sizes[row] = (32, 32)
        self._images = dataclasses.replace(self._images, files=tuple(files), sizes=sizes)
        self._loader.close()
        self._loader = self._make(self._images)

    def close(self) -> None:
        """As BatchLoader."""
        self._loader.close()
        self._folder.cleanup()


def predict(
    model: nn.Module,
    chosen: EvaluationSet,
    loader: Loader,
    *,
    sizes: Sequence[int],
    missing: dict[int, str],
    ranks: Ranks,
    classes: int,
    calibration: bool = True,
    **given: Any,
) -> tuple[dict[int, Predictions], dict[str, str]] | None:
    """The table of a set at each of the loader's sizes, and its missing files, {name: reason}, on rank 0, None
    elsewhere; collective.

    missing: filled by the loader. calibration: keep the logits, for its figures. given: as for `evaluate`.
    """
    images, columns = chosen.images, chosen.columns
    keep = calibration and chosen.label_sets is None and len(images.files) * classes * len(sizes) <= MOST_LOGITS
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {str(size): [] for size in sizes}

    def keep_logits(name: str, rows: Tensor, logits: Tensor) -> None:
        if keep:
            kept[name].append((rows, logits.to(torch.float32, copy=True)))  # a CUDA graph writes the next ones there

    restricted = model if columns is None else Restricted(model, columns).to(ranks.device).train(model.training)
    tables = evaluate(
        {str(size): restricted for size in sizes},
        loader,
        samples=len(images.files),
        ranks=ranks,
        keep_logits=keep_logits,
        **given,
    )
    own = {name: [(rows.cpu().numpy(), part.cpu().numpy()) for rows, part in parts] for name, parts in kept.items()}
    gathered = ranks.gather((missing, own))
    if not ranks.first:
        return None
    absent = {row: reason for theirs, _ in gathered for row, reason in theirs.items()}
    present = ~np.isin(np.arange(len(images.files)), list(absent))
    found = {}
    for size in sizes:
        parts = [part for _, theirs in gathered for part in theirs[str(size)]]
        logits = _in_order(parts, len(images.files)) if keep else None
        sets = chosen.label_sets
        table = from_table(
            tables[str(size)], images.files, images.labels, columns=columns, label_sets=sets, logits=logits
        )
        found[size] = table.rows(present) if absent else table
    return found, {images.files[row]: absent[row] for row in sorted(absent)}


def _in_order(parts: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """(count, C) from parts of rows (n,) and values (n, C)."""
    values = np.zeros((count, parts[0][1].shape[1]), dtype=np.float32)
    for rows, part in parts:
        values[rows] = part
    return values
