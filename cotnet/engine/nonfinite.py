"""Finds the step whose loss or gradient is not finite, and writes a report about it."""

import math
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
        self.steps: list[StepRecord] = []

    def check(self, ranks: Ranks, state: State, *, files: Sequence[str], seed: int, folder: Path) -> None:
        """Checks every step since the last call; collective, synchronises with the device. Raises NotFinite for the
        first bad step, after writing `folder`/incidents/step-N/incident.json."""
        taken, self.steps = self.steps, []
        if not taken:
            return
        figures = torch.stack([torch.stack((step.loss, step.grad_norm)) for step in taken]).cpu()  # (steps, 2)
        bad = [i for i, row in enumerate(figures.tolist()) if not all(map(math.isfinite, row))]
        if not ranks.any(bool(bad)):
            return
        per_rank = ranks.gather((figures.tolist(), [step.indices.tolist() for step in taken], bad))
        first = min((found[0] for _, _, found in per_rank if found), default=0)  # on rank 0
        losses_finite = all(math.isfinite(rows[first][0]) for rows, _, _ in per_rank)
        first, what = ranks.broadcast((first, "gradient" if losses_finite else "loss"))
        step = taken[first]
        path = folder / "incidents" / f"step-{step.step:06d}" / "incident.json"
        if ranks.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            told = _report(taken, first, per_rank, files) | {"what": what, "seed": seed} | _weights(state)
            records.write_json(path, told)
        line = f"the {what} is not finite at step {step.step} ({path} names its images)"
        raise NotFinite(line, (step.epoch, step.batch))


def _report(taken: list[StepRecord], first: int, per_rank: list[Any], files: Sequence[str]) -> dict[str, Any]:
    """The bad step with its images, and loss and gradient norm of the steps around it; JSON's null stands for NaN."""
    bad = taken[first]
    steps = []
    for i, step in enumerate(taken):
        figures = {"loss": [rows[i][0] for rows, _, _ in per_rank], "grad_norm": per_rank[0][0][i][1]}
        steps.append({"step": step.step, "batch": step.batch, "lr": step.lr, **figures})
    # Per rank. Each copy of a repeated image has its own index.
    names = [[files[index % len(files)] for index in indices[first]] for _, indices, _ in per_rank]
    return {"step": bad.step, "epoch": bad.epoch, "batch": bad.batch, "lr": bad.lr, "files": names, "steps": steps}


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
