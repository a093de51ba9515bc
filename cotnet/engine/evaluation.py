"""Exact evaluation: every image once, on any number of ranks, in batches of one fixed shape."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision

BEST: Final = 5  # classes kept of each image
# Columns of a table of results: how often an image was seen, its loss and Brier score, its best classes (-1 where there
# are fewer) and their probabilities.
SEEN, LOSS, BRIER = range(3)
CLASSES, PROBABILITIES = slice(3, 3 + BEST), slice(3 + BEST, 3 + 2 * BEST)
COLUMNS: Final = 3 + 2 * BEST


class Loader(Protocol):
    """Batches of an epoch on this rank, from batch `first` on: uint8 images (B, 3, S, S), targets (B,), and on the CPU
    sample indices (B,), -1 for padding. Images of several sizes are a tuple; the i-th model gets the i-th size."""

    def batches(self, epoch: int, first: int = 0) -> Iterator[Any]: ...


class Interrupted(Exception):  # noqa: N818 - not an error: a person or a scheduler asked
    """A stop was requested; raised on every rank together."""


@torch.inference_mode()
def evaluate(
    models: Mapping[str, nn.Module],
    loader: Loader,
    *,
    samples: int,
    flip: bool,
    prepare: Callable[[Tensor], Tensor],
    precision: Precision,
    ranks: Ranks,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda _images: None,
    keep_logits: Callable[[str, Tensor, Tensor], None] = lambda _name, _indices, _logits: None,
) -> dict[str, Tensor]:
    """A table (samples, COLUMNS) of float64 on the CPU for each model; collective.

    Each rank fills the rows of its images, and the tables are added: the same bits on any number of ranks.

    Args:
        flip: average the logits of each image and its mirror image. prepare: normalises uint8 images.
        advance: called with the number of images done since its last call.
        keep_logits: called with a model's name, sample indices (b,) and logits (b, classes) of each batch.

    Raises:
        Interrupted: `stop()` was true on some rank. RuntimeError: a sample was evaluated not exactly once.
    """
    tables = {name: torch.zeros(samples, COLUMNS, device=ranks.device, dtype=torch.float64) for name in models}
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    for images, targets, indices in loader.batches(0):
        if stop():
            break
        count = int((indices >= 0).sum())
        where = indices[:count].to(ranks.device, non_blocking=True)
        sizes = images if isinstance(images, tuple) else (images,)
        inputs = [prepare(one).to(memory_format=precision.layout) for one in sizes]
        for number, (name, model) in enumerate(models.items()):
            given = inputs[number % len(inputs)]
            with precision.autocast():
                logits = model(given)
                if flip:  # a copy: a CUDA graph writes its next result to the same memory
                    logits = (logits.clone() + model(given.flip(-1))) / 2
            tables[name][where] += results(logits[:count], targets[:count])
            keep_logits(name, where, logits[:count])
        advance(count)
    for name, model in models.items():
        model.train(modes[name])
    if ranks.any(stop()):
        raise Interrupted
    return {name: _complete(ranks.sum(table).cpu()) for name, table in tables.items()}


def results(logits: Tensor, targets: Tensor) -> Tensor:
    """Rows (B, COLUMNS) of logits (B, classes). An image without a label has target -1 and loss and Brier score 0.

    The Brier score is the squared distance of the probabilities from the target (Brier 1950).
    """
    log_probabilities = logits.double().log_softmax(1)
    probabilities = log_probabilities.exp()
    labelled, own = targets >= 0, targets.clamp(min=0)[:, None]
    loss = -log_probabilities.gather(1, own)[:, 0]
    brier = (probabilities**2).sum(1) - 2 * probabilities.gather(1, own)[:, 0] + 1
    rows = torch.full((len(logits), COLUMNS), -1, dtype=torch.float64, device=logits.device)
    rows[:, SEEN] = 1
    rows[:, LOSS] = torch.where(labelled, loss, 0)
    rows[:, BRIER] = torch.where(labelled, brier, 0)
    best = logits.topk(min(BEST, logits.shape[1])).indices
    rows[:, CLASSES][:, : best.shape[1]] = best.double()
    rows[:, PROBABILITIES] = 0
    rows[:, PROBABILITIES][:, : best.shape[1]] = probabilities.gather(1, best)
    return rows


def figures(table: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 in percent, cross-entropy and image count of a table (N, COLUMNS) and labels (N,)."""
    hits, images = table[:, CLASSES] == labels[:, None], len(table)
    top1, top5 = int(hits[:, 0].sum()), int(hits.any(1).sum())
    loss = math.fsum(table[:, LOSS].tolist()) / images  # exact: the order of the images does not matter
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images, "loss": loss, "images": images}


def _complete(table: Tensor) -> Tensor:
    wrong = int((table[:, SEEN] != 1).sum())
    if wrong:
        raise RuntimeError(f"{wrong} of {len(table)} samples were not evaluated exactly once")
    return table
