"""When a loss or a gradient is not finite: which batch it was, and what is kept about it."""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cotnet.engine import records
from cotnet.engine.distributed import Ranks
from cotnet.engine.state import State


class Step(NamedTuple):
    """One optimizer step as it was taken; `loss` and `grad_norm` are scalars on the device."""

    step: int
    epoch: int
    batch: int
    rate: float
    indices: Tensor
    loss: Tensor
    grad_norm: Tensor


class NotFinite(Exception):  # noqa: N818 - the run decides whether it is an error
    """A loss or a gradient is not finite: one line; raised on every rank together. `batch` is (epoch, batch), where a
    training batch is to blame."""

    def __init__(self, line: str, batch: tuple[int, int] | None = None) -> None:
        self.batch = batch
        super().__init__(line)


class Watch:
    """The steps since the last check; nothing is read from the device before that."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque()

    def check(self, ranks: Ranks, state: State, *, files: Sequence[str], seed: int, folder: Path) -> None:
        """Look at every step since the last check; collective, and a synchronisation with the device.

        Raises:
            NotFinite: at the first bad step, after `folder`/incidents/step-N/incident.json was written.
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


def _report(taken: list[Step], first: int, per_rank: list[Any], files: Sequence[str]) -> dict[str, Any]:
    """The bad step with its images, and the figures of the steps around it. JSON has no NaN: null stands for it."""
    bad = taken[first]
    return {
        "step": bad.step,
        "epoch": bad.epoch,
        "batch": bad.batch,
        "lr": bad.rate,
        # of each rank; a repeated image has an index of its own per repetition (data.loading.plan)
        "files": [[files[index % len(files)] for index in indices[first]] for _, indices, _ in per_rank],
        "steps": [
            {
                "step": step.step,
                "batch": step.batch,
                "lr": step.rate,
                "loss": [rows[i][0] for rows, _, _ in per_rank],
                "grad_norm": per_rank[0][0][i][1],
            }
            for i, step in enumerate(taken)
        ],
    }


def _weights(state: State) -> dict[str, Any]:
    """How large the weights are, and which are already not finite (what the bad step did to them)."""
    norms = {name: float(parameter.detach().double().norm()) for name, parameter in state.model.named_parameters()}
    finite = {name: norm for name, norm in norms.items() if math.isfinite(norm)}
    largest = sorted(finite, key=finite.__getitem__, reverse=True)[:10]
    return {
        "parameters_not_finite": [name for name in norms if name not in finite],
        "largest_weight_norms": {name: finite[name] for name in largest},
        "loss_scale": state.scaler.get_scale(),
    }
