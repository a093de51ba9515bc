"""Writes checkpoints in a background thread, and decides which epochs' checkpoints are kept."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cotnet.engine import state as checkpoints
from cotnet.settings import CheckpointSettings


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


def epoch_file(epoch: int) -> str:
    """The name under which the checkpoint after `epoch` epochs is kept."""
    return f"epoch_{epoch:04d}.pt"


def kept_epochs(saving: CheckpointSettings, history: list[list[float]]) -> set[int]:
    """The epochs whose checkpoints stay beside last.pt and best.pt, from [epochs done, top-1] of each evaluation:
    every n-th, and the best k (the earlier of two equal ones)."""
    epochs = [int(epoch) for epoch, _ in history if epoch == int(epoch)]
    nth = {epoch for epoch in epochs if saving.keep_every is not None and epoch % saving.keep_every == 0}
    ranked = sorted((-top1, int(epoch)) for epoch, top1 in history if epoch == int(epoch))
    return nth | {epoch for _, epoch in ranked[: saving.keep_top or 0]}


def write(
    folder: Path, checkpoint: checkpoints.Checkpoint, *, also: set[str], keep: set[str], before: Callable[[], None]
) -> None:
    """Write checkpoints/last.pt, the same under the names `also`, and remove the epochs' files that are not in `keep`.

    last.pt comes last: a kill on the way leaves a run that continues from the one before and writes the others again.
    """
    before()
    checkpoints.save(folder / "last.pt", checkpoint, also=[folder / name for name in sorted(also)])
    for path in folder.glob("epoch_*.pt"):
        if path.name not in keep:
            path.unlink()


def job(
    folder: Path,
    checkpoint: checkpoints.Checkpoint,
    saving: CheckpointSettings,
    state: checkpoints.State,
    *,
    best: bool,
    before: Callable[[], None],
) -> Callable[[], None]:
    """A job for `Background` that writes this state. Copies everything that training changes."""
    kept = kept_epochs(saving, state.history)
    epoch_kept = state.batch_in_epoch == 0 and state.epoch in kept
    also = ({"best.pt"} if best else set()) | ({epoch_file(state.epoch)} if epoch_kept else set())
    keep = {epoch_file(epoch) for epoch in kept}
    return functools.partial(write, folder, snapshot(checkpoint), also=also, keep=keep, before=before)
