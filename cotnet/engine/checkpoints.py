"""Checkpoint files: written atomically in a background thread, read without running code from them."""

import contextlib
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cotnet.errors import InputError, RunError
from cotnet.files import flush, replacing
from cotnet.integrity import checksum, damage
from cotnet.settings import CheckpointSettings

FORMAT = 2
Checkpoint = dict[str, Any]


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads a state dict of exactly this model. Raises InputError if keys or shapes differ."""
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
        sizes = f"{key} is {theirs} there and {ours} here"
        raise InputError(f"{path} does not fit the model: {sizes}; another num_classes or backbone?")
    model.load_state_dict(tensors)


def save(path: Path, checkpoint: Checkpoint, *, also: Iterable[Path] = ()) -> None:
    """Writes the file whole or not at all: a crash leaves the old or the new checkpoint. The files in `also` become the
    same checkpoint before `path` does. Raises RunError if the disk is full or read-only; the old file stays."""
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
    """Reads a checkpoint of this application onto the CPU; runs no code from the file. Raises InputError if the file is
    missing, truncated, holds more than data, or is no checkpoint of this application."""
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
        first = re.split(r"[.;:] |\n", str(error) or type(error).__name__)[0][:120]
        raise Damaged(first if zipfile.is_zipfile(path) else "it is no whole archive") from None
    ours = isinstance(checkpoint, dict) and checkpoint.get("format") == FORMAT
    if ours and "checksum" in checkpoint:  # files of version 0.1 have none
        if checkpoint["checksum"] != checksum(_content(checkpoint)):
            raise Damaged("its checksum differs")
    elif reason := damage(path):
        raise Damaged(reason)
    if not ours:
        raise InputError(f"{path} is not a checkpoint of this application (format {FORMAT})")
    return checkpoint


def _content(checkpoint: Checkpoint) -> Checkpoint:
    return {name: value for name, value in checkpoint.items() if name != "checksum"}


def _instead(path: Path) -> str:
    """The advice for a damaged checkpoint: the newest whole checkpoint beside it."""
    found: list[tuple[int, Path]] = []
    for other in (path.with_name("best.pt"), *sorted(path.parent.glob("epoch_*.pt"), reverse=True)):
        with contextlib.suppress(Damaged, InputError):
            if other != path:
                found.append((_read(other)["progress"]["step"], other))
    if not found:
        return "no whole checkpoint is beside it; use another one in its place"
    step, whole = max(found, key=lambda pair: pair[0])
    return f"{whole} is whole: use that one, or copy it over the damaged file to continue from step {step}"


def require_image_set(checkpoint: Checkpoint, image_set: str, path: Path) -> None:
    """Raises InputError if the checkpoint's run used another image set: its position in the epoch has no meaning."""
    if checkpoint["image_set"] != image_set:
        theirs, ours = checkpoint["image_set"][:12], image_set[:12]
        raise InputError(
            f"{path} was trained on image set {theirs}, data.root now holds {ours}: images were added, removed or "
            "renamed; restore them or choose another output_dir"
        )


class Background:
    """Runs one job at a time in a thread; the next call of any method raises a job's error."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Starts a job once the previous one is done."""
        self.wait()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raises the error of a finished job; does not wait."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the job; raises its error."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Ends the thread after its job. Errors are dropped."""
        self._thread.shutdown(wait=True)


def snapshot(tree: Any) -> Any:
    """The same containers with every tensor copied to the CPU, so that training can change the originals. A value that
    a dictionary holds twice stays one."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        copies = {id(value): snapshot(value) for value in tree.values()}
        return {key: copies[id(value)] for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(snapshot(value) for value in tree)
    return tree


def kept_epochs(saving: CheckpointSettings, history: list[list[float]], epochs: int) -> set[int]:
    """The epochs whose checkpoints stay beside last.pt and best.pt: every n-th of those done, and the best k (the
    earlier of two equal ones) of `history`, [epochs done, top-1] of each evaluation."""
    nth = set(range(saving.keep_every, epochs + 1, saving.keep_every)) if saving.keep_every else set()
    ranked = sorted((-top1, int(epoch)) for epoch, top1 in history if epoch == int(epoch))
    return nth | {epoch for _, epoch in ranked[: saving.keep_top or 0]}


def write(folder: Path, checkpoint: Checkpoint, *, also: set[str], keep: set[str], before: Callable[[], None]) -> None:
    """Write checkpoints/last.pt, the same under the names `also`, and remove the epochs' files that are not in `keep`.

    last.pt comes last: a kill on the way leaves a run that continues from the one before and writes the others again.
    """
    before()
    save(folder / "last.pt", checkpoint, also=[folder / name for name in sorted(also)])
    for path in folder.glob("epoch_*.pt"):
        if path.name not in keep:
            path.unlink()
