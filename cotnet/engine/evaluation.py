"""Exact evaluation: every image once, on any number of ranks, in batches of one fixed shape."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision

SEEN, LOSS, TOP1, TOP5 = range(4)


class Loader(Protocol):
    """Batches of an epoch on this rank, from batch `first` on: uint8 images (B, 3, S, S), targets (B,), and on the CPU
    sample indices (B,), -1 for padding."""

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
) -> dict[str, dict[str, float]]:
    """Top-1, top-5 (percent), cross-entropy and image count of each model; collective.

    Each rank writes its results into a table with one row per sample, and the tables are added. Every sample must have
    been seen once, so the results are the same on any number of ranks, to the last digit.

    Args:
        flip: average the logits of each image and its mirror image.
        prepare: normalises uint8 images.
        advance: called with the number of images done since its last call.

    Raises:
        Interrupted: `stop()` was true on some rank.
        RuntimeError: a sample was evaluated not exactly once.
    """
    tables = {name: torch.zeros(samples, 4, dtype=torch.float64, device=ranks.device) for name in models}
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    for images, targets, indices in loader.batches(0):
        if stop():
            break
        count = int((indices >= 0).sum())
        where = indices[:count].to(ranks.device, non_blocking=True)
        inputs = prepare(images).to(memory_format=precision.layout)
        for name, model in models.items():
            with precision.autocast():
                logits = model(inputs)
                if flip:
                    logits = (logits + model(inputs.flip(-1))) / 2
            tables[name][where] += _results(logits[:count], targets[:count])
        advance(count)
    for name, model in models.items():
        model.train(modes[name])
    if ranks.any(stop()):
        raise Interrupted
    return {name: _figures(ranks.sum(table)) for name, table in tables.items()}


def _results(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, classes) -> (B, 4): one, loss, hit among the first, hit among the first five."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    hits = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]  # (B, 5)
    loss = F.cross_entropy(logits, targets, reduction="none")
    return torch.stack([torch.ones_like(loss), loss, hits[:, 0].to(loss), hits.any(1).to(loss)], dim=1).double()


def _figures(table: Tensor) -> dict[str, float]:
    table = table.cpu()
    wrong = int((table[:, SEEN] != 1).sum())
    if wrong:
        raise RuntimeError(f"{wrong} of {len(table)} samples were not evaluated exactly once")
    loss, top1, top5 = table[:, LOSS:].sum(0).tolist()
    images = len(table)
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images, "loss": loss / images, "images": images}
