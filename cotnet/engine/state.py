"""The state of a run, and its checkpoint file: written atomically, read without running code from it."""

import contextlib
import copy
import os
import pickle
import platform
import re
import shutil
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cotnet.engine.distributed import Ranks
from cotnet.engine.optimizer import MovingAverage
from cotnet.errors import InputError, RunError
from cotnet.files import flush, replacing
from cotnet.integrity import checksum, damage

FORMAT = 2
Checkpoint = dict[str, Any]


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
    """The checkpoint on rank 0, an empty dictionary elsewhere; collective. `config`: the run's configuration as JSON.

    Within an epoch BatchNorm statistics and the open window differ between ranks: the checkpoint holds every rank's.
    """
    own = {
        "model": _buffers(state.model),
        "ema": _buffers(state.ema.module),
        "window": {name: total.cpu() for name, total in state.window.items()},
    }
    state.tick()
    per_rank = ranks.gather(own)
    if not ranks.first:
        return {}
    model = state.model.state_dict()
    return {
        "format": FORMAT,
        "config": config,
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
        "progress": copy.deepcopy(progress(state)),
        "image_set": state.image_set,
        "classes": list(state.classes),
        "model": model,
        "ema": model if state.ema.module is state.model else state.ema.module.state_dict(),  # one copy in the file
        "ema_updates": state.ema.updates,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ranks": per_rank,
    }


def restore(state: State, checkpoint: Checkpoint, ranks: Ranks, path: Path) -> None:
    """Continues from a checkpoint: exactly on the same number of ranks; on another number with averaged BatchNorm
    statistics.

    Raises:
        InputError: the checkpoint is of another model, or has other parameter groups.
    """
    theirs, ours = (
        [len(group["params"]) for group in groups]
        for groups in (checkpoint["optimizer"]["param_groups"], state.optimizer.param_groups)
    )
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


def require_image_set(checkpoint: Checkpoint, image_set: str, path: Path) -> None:
    """Raises InputError if the checkpoint's run used another image set: its position in the epoch has no meaning."""
    if checkpoint["image_set"] != image_set:
        theirs, ours = checkpoint["image_set"][:12], image_set[:12]
        raise InputError(
            f"{path} was trained on image set {theirs}, data.root now holds {ours}: images were added, removed or "
            "renamed; restore them or choose another output_dir"
        )


def _mean(items: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(tensors: list[Tensor]) -> Tensor:
        return torch.stack([t.double() for t in tensors]).mean(0).to(tensors[0].dtype)

    return {
        part: {name: mean([item[part][name] for item in items]) for name in items[0][part]}
        for part in ("model", "ema", "window")
    }


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads a state dict of exactly this model.

    Raises:
        InputError: keys or shapes differ.
    """
    own = model.state_dict()
    missing, unexpected = [k for k in own if k not in tensors], [k for k in tensors if k not in own]
    shapes = [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if missing or unexpected:
        names = ", ".join((missing + unexpected)[:3])
        counts = f"{len(missing)} keys missing, {len(unexpected)} unexpected"
        raise InputError(f"{path} is of another model ({counts}: {names}); give its own backbone")
    if shapes:
        key = shapes[-1]
        theirs, ours = list(tensors[key].shape), list(own[key].shape)
        raise InputError(f"{path} does not fit the model: {key} is {theirs} there and {ours} here; "
                         "another num_classes or backbone?")  # fmt: skip
    model.load_state_dict(tensors)


def save(path: Path, checkpoint: Checkpoint, *, also: Iterable[Path] = ()) -> None:
    """Writes the file whole or not at all: a crash leaves the old or the new checkpoint. The files in `also` become the
    same checkpoint before `path` does. `load` compares its `checksum`.

    Raises:
        RunError: the disk is full or read-only; the old file stays.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            torch.save({**checkpoint, "checksum": checksum(_content(checkpoint))}, file)
            flush(file)
            for name in also:
                duplicate(Path(file.name), name)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(f"cannot write {path}: {reason}; what was saved before stands, make room and resume") from None


def duplicate(path: Path, target: Path) -> None:
    """Makes `target` the same checkpoint as `path`, by a hard link if the file system has them."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(target)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint of this application onto the CPU; runs no code from the file.

    Raises:
        InputError: the file is missing, truncated, holds more than data, or is no checkpoint of this application.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file, or a run's folder for its checkpoints/best.pt")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give checkpoint=PATH of an existing file")
    try:
        return _read(path)
    except Damaged as error:
        raise InputError(f"{path} is damaged or truncated ({error}); {_instead(path)}") from None


class Damaged(Exception):  # noqa: N818 - becomes an InputError that names a whole checkpoint
    """A file does not hold what was written; the reason in a few words."""


def _read(path: Path) -> Checkpoint:
    try:
        # Mapped into memory, the file is read once, by the checksum; copying it first costs more than the checksum.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise RunError(f"not enough memory to read {path} ({path.stat().st_size / 2**20:.0f} MiB)") from None
    except PermissionError:  # the program's line names the file
        raise
    # Bytes that make no sense raise anything in torch's unpickler.
    except Exception as error:
        if reason := damage(path):
            raise Damaged(reason) from None
        if isinstance(error, pickle.UnpicklingError):
            raise InputError(f"{path} holds more than tensors and numbers; refused, nothing in it was run") from None
        raise Damaged(re.split(r"[.;:] |\n", str(error) or type(error).__name__)[0][:120]) from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        if reason := damage(path):
            raise Damaged(reason)
        raise InputError(f"{path} is not a checkpoint of this application (format {FORMAT})")
    written = checkpoint.get("checksum")  # files of version 0.1 have none
    reason = damage(path) if written is None else "its checksum differs" * (written != checksum(_content(checkpoint)))
    if reason:
        raise Damaged(reason)
    return checkpoint


def _content(checkpoint: Checkpoint) -> Checkpoint:
    return {name: value for name, value in checkpoint.items() if name != "checksum"}


def _instead(path: Path) -> str:
    """The advice for a damaged checkpoint: the newest whole checkpoint beside it."""
    found: tuple[int, Path] | None = None
    for other in (path.with_name("best.pt"), *sorted(path.parent.glob("epoch_*.pt"), reverse=True)):
        if other == path or not other.is_file():
            continue
        with contextlib.suppress(Damaged, InputError):
            step = _read(other)["progress"]["step"]
            if found is None or step > found[0]:
                found = step, other
    if found is None:
        return "no whole checkpoint is beside it; use another one in its place"
    return f"{found[1]} is whole: use that one, or copy it over the damaged file to continue from step {found[0]}"
