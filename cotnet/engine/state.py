"""The state of a run between two optimizer steps, and the checkpoint of it."""

import copy
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cotnet.engine.checkpoints import FORMAT, Checkpoint, load, load_tensors
from cotnet.engine.distributed import Ranks
from cotnet.engine.optimizer import MovingAverage
from cotnet.errors import InputError


@dataclass(kw_only=True)
class State:
    """A run between two optimizer steps. `step`: completed optimizer steps; `batch_in_epoch`: batches of this epoch."""

    model: nn.Module
    ema: MovingAverage
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    epoch: int = 0
    batch_in_epoch: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    history: list[list[float]] = field(default_factory=list)  # [epochs done, higher top-1 of raw and averaged weights]
    last_eval_step: int = -1
    rollbacks: int = 0
    skipped: list[list[int]] = field(default_factory=list)  # [epoch, batch] left out after a rollback
    lr_factor: float = 1.0  # what rollbacks made of the learning rate
    run_id: str = ""
    image_set: str = ""  # names the training set
    classes: tuple[str, ...] = ()  # of the training set
    seconds: float = 0.0  # of the whole run, over all its processes
    train_seconds: float = 0.0  # of the logged windows, in which `trained_images` went by
    trained_images: int = 0
    window: dict[str, Tensor] = field(default_factory=dict)  # this rank's sums over the steps since the last log line
    window_steps: int = 0
    _clock: float = field(default_factory=time.monotonic)

    def tick(self) -> float:
        """Updates `seconds`; returns it."""
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        return self.seconds

    def count(self, **figures: Tensor) -> None:
        """Adds a step's figures (scalars on the device) to the open window."""
        for name, figure in figures.items():
            self.window[name] = self.window[name] + figure if name in self.window else figure


# What the file calls a field of State, where the names differ.
_IN_FILE = {"batch_in_epoch": "batch", "last_eval_step": "evaluated"}
_PROGRESS = (
    *("step", "epoch", "batch_in_epoch", "best", "history", "last_eval_step", "rollbacks", "skipped", "lr_factor"),
    *("run_id", "seconds", "train_seconds", "trained_images", "window_steps"),
)


def progress(state: State) -> dict[str, Any]:
    """`progress` of a checkpoint: how far the run is, in numbers and strings."""
    return {_IN_FILE.get(name, name): getattr(state, name) for name in _PROGRESS}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().cpu() for name, b in module.named_buffers() if b.is_floating_point()}


def pack(state: State, ranks: Ranks, config: str) -> Checkpoint:
    """The checkpoint on rank 0, an empty dictionary elsewhere; collective. It shares its containers and tensors with
    the state. `config`: the run's configuration as JSON.

    Within an epoch BatchNorm statistics and the open window differ between ranks: the checkpoint holds every rank's.
    """
    window = {name: total.cpu() for name, total in state.window.items()}
    per_rank = ranks.gather({"model": _buffers(state.model), "ema": _buffers(state.ema.module), "window": window})
    state.tick()
    if not ranks.first:
        return {}
    model = state.model.state_dict()
    return {
        "format": FORMAT,
        "config": config,
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
        "progress": progress(state),
        "image_set": state.image_set,
        "classes": list(state.classes),
        "model": model,
        "ema": model if state.ema.module is state.model else state.ema.module.state_dict(),  # one copy in the file
        "ema_updates": state.ema.updates,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ranks": per_rank,
    }


def restore(state: State, path: Path, ranks: Ranks) -> None:
    """Continues from a checkpoint: exactly on the same number of ranks; on another number with averaged BatchNorm
    statistics. Raises InputError if it cannot be read, is of another model, or has other parameter groups."""
    checkpoint = load(path)
    both = (checkpoint["optimizer"]["param_groups"], state.optimizer.param_groups)
    theirs, ours = ([len(group["params"]) for group in groups] for groups in both)
    if theirs != ours:
        raise InputError(
            f"{path} has weight decay on other parameters (groups of {theirs} tensors, here {ours}): another version "
            f"wrote it; choose another output_dir, and start from its weights with backbone.weights={path}"
        )
    load_tensors(state.model, checkpoint["model"], path)
    load_tensors(state.ema.module, checkpoint["ema"], path)
    state.ema.updates = checkpoint["ema_updates"]
    state.optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))  # not the mapped file's own memory
    state.scaler.load_state_dict(checkpoint["scaler"])
    for name in _PROGRESS:
        setattr(state, name, checkpoint["progress"][_IN_FILE.get(name, name)])
    kept = checkpoint["ranks"]
    own = kept[ranks.rank] if len(kept) == ranks.world_size else _mean(kept)
    for module, buffers in ((state.model, own["model"]), (state.ema.module, own["ema"])):
        for name, buffer in module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    state.window = {name: total.clone().to(ranks.device) for name, total in own["window"].items()}


def _mean(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the tensors of several ranks, two dictionaries deep."""
    if isinstance(items[0], dict):
        return {name: _mean([item[name] for item in items]) for name in items[0]}
    return torch.stack([item.double() for item in items]).mean(0).to(items[0].dtype)
