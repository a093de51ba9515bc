"""The run folder: who may write in it, what it already holds."""

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cotnet.config import Config, flatten, to_yaml
from cotnet.continuing import compare
from cotnet.engine import records
from cotnet.engine import state as checkpoints
from cotnet.engine.outside import first_process
from cotnet.engine.settings import TrainSettings
from cotnet.engine.terminal import clock, say
from cotnet.engine.training import finished
from cotnet.errors import InputError
from cotnet.files import SWEEP_LEDGER, locked
from cotnet.nodes import typed


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder and hold it for this process: two runs never write into one.

    Raises:
        InputError: it cannot be made or written, or another process holds it.
    """
    if not first_process():
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / ".lock"))
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by another process; wait for it or choose another output_dir"
            ) from None
        except OSError as error:
            raise InputError(f"cannot write into {folder}: {error.strerror}; choose another output_dir") from None
        yield


def already_finished(folder: Path, config: Config, image_set: str) -> bool:
    """Whether the folder's run has nothing left to do; says so.

    Raises:
        InputError: the folder holds a sweep or a run with another configuration or image set, or its checkpoint cannot
            be read.
    """
    if (folder / SWEEP_LEDGER).exists():
        raise InputError(f"{folder} holds a sweep, not a run; choose another output_dir")
    last = folder / "checkpoints" / "last.pt"
    if not last.exists():  # nothing there to protect or to continue
        return False
    checkpoint = checkpoints.load(last)
    changes = compare(flatten(json.loads(checkpoint["config"])), flatten(config), str(folder))
    progress = checkpoint["progress"]
    if not finished(typed(TrainSettings, config["train"], "train"), progress):
        checkpoints.require_image_set(checkpoint, image_set, last)
        checkpoints.require_same_batches(checkpoint, last)
        if first_process():
            changed = f" ({'; '.join(changes)})" if changes else ""
            say(f"continuing {folder} at epoch {progress['epoch']}, step {progress['step']}{changed}")
        return False
    if first_process():
        best = progress["best"]
        say(
            f"{folder} is finished: {progress['step']} steps, best top-1 {best['best_top1']:.2f} % "
            f"({best['best_weights']}, epoch {best['best_epoch']:g}); for a new run choose another output_dir"
        )
    return True


def write_config(path: Path, config: Config) -> None:
    """The resolved configuration that is used, for people to read."""
    if first_process():
        records.write_text(path, to_yaml(config))


def say_excluded(root: Path, *, train: int, val: int) -> None:
    """How many files of the splits are left out, if any."""
    if (train or val) and first_process():
        say(f"{root}: {train} train and {val} val files are excluded, for the reasons in {root / 'manifest.json'}")


def say_where(folder: Path) -> None:
    """What a finished run came to, and where it lies."""
    if not first_process():
        return
    summary = json.loads((folder / "summary.json").read_text())
    accuracy = f"top-1 {summary['best_top1']:.2f} %, top-5 {summary['best_top5']:.2f} %"
    say(f"finished in {clock(summary['seconds'])}; best {accuracy} ({summary['best_weights']} weights, epoch "
        f"{summary['best_epoch']:g})")  # fmt: skip
    say(f"{folder}: checkpoints/best.pt, checkpoints/last.pt, metrics.jsonl, summary.json, curves.png, config.yaml")
