"""Finds the step whose loss or gradient is not finite, and writes a report about it."""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cotnet import records
from cotnet.engine.distributed import Ranks
from cotnet.engine.state import State


class StepRecord(NamedTuple):
    """A completed optimizer step; `loss` and `grad_norm` are scalars on the device, `indices` (B,) on the CPU."""

    step: int
    epoch: int
    batch: int
    lr: float
    indices: Tensor
    loss: Tensor
    grad_norm: Tensor


class NotFinite(Exception):  # noqa: N818 - the run decides whether it is an error
    """A loss or a gradient is not finite; raised on every rank together. `batch`: (epoch, batch) of a training batch,
    None if it was the validation loss."""

    def __init__(self, line: str, batch: tuple[int, int] | None = None) -> None:
        self.batch = batch
        super().__init__(line)


class NonFiniteCheck:
    """The steps since the last check. Nothing is read from the device in between."""

    def __init__(self) -> None:
        self.steps: deque[StepRecord] = deque()

    def check(self, ranks: Ranks, state: State, *, files: Sequence[str], seed: int, folder: Path) -> None:
        """Checks every step since the last call; collective, synchronises with the device.

        Raises:
            NotFinite: for the first bad step, after writing `folder`/incidents/step-N/incident.json.
        """
        taken, self.steps = list(self.steps), deque()
        if not taken:
            return
        figures = torch.stack([torch.stack((step.loss, step.grad_norm)) for step in taken]).cpu()  # (steps, 2)
        bad = [i for i, row in enumerate(figures.tolist()) if not all(map(math.isfinite, row))]
        if not ranks.any(bool(bad)):
            return
        per_rank = ranks.gather((figures.tolist(), [step.indices.tolist() for step in taken], bad))
        incident = None
        if ranks.first:
            first = min(found[0] for _, _, found in per_rank if found)
            what = "gradient" if all(math.isfinite(rows[first][0]) for rows, _, _ in per_rank) else "loss"
            incident = (first, what)
        first, what = ranks.broadcast(incident)
        where = folder / "incidents" / f"step-{taken[first].step:06d}"
        if ranks.first:
            report = _report(taken, first, per_rank, files) | {"what": what, "seed": seed} | _weights(state)
            where.mkdir(parents=True, exist_ok=True)
            records.write_json(where / "incident.json", report)
        step = taken[first]
        line = f"the {what} is not finite at step {step.step} ({where / 'incident.json'} names its images)"
        raise NotFinite(line, (step.epoch, step.batch))


def _report(taken: list[StepRecord], first: int, per_rank: list[Any], files: Sequence[str]) -> dict[str, Any]:
    """The bad step with its images, and loss and gradient norm of the steps around it; JSON's null stands for NaN."""
    bad = taken[first]
    return {
        "step": bad.step,
        "epoch": bad.epoch,
        "batch": bad.batch,
        "lr": bad.lr,
        # Per rank. Each copy of a repeated image has its own index.
        "files": [[files[index % len(files)] for index in indices[first]] for _, indices, _ in per_rank],
        "steps": [
            {
                "step": step.step,
                "batch": step.batch,
                "lr": step.lr,
                "loss": [rows[i][0] for rows, _, _ in per_rank],
                "grad_norm": per_rank[0][0][i][1],
            }
            for i, step in enumerate(taken)
        ],
    }


def _weights(state: State) -> dict[str, Any]:
    """Norms of the largest weights, and the weights that are not finite."""
    norms = {name: float(parameter.detach().double().norm()) for name, parameter in state.model.named_parameters()}
    finite = {name: norm for name, norm in norms.items() if math.isfinite(norm)}
    largest = sorted(finite, key=finite.__getitem__, reverse=True)[:10]
    return {
        "parameters_not_finite": [name for name in norms if name not in finite],
        "largest_weight_norms": {name: finite[name] for name in largest},
        "loss_scale": state.scaler.get_scale(),
    }
