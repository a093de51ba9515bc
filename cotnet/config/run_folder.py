"""The run folder: the run that it already holds, and the lines about it."""

import json
from pathlib import Path

from cotnet.config.build import typed
from cotnet.config.compose import Config, flatten, to_yaml
from cotnet.config.continuing import as_begun, compare
from cotnet.config.moves import stored_config
from cotnet.engine import checkpoints
from cotnet.engine.rank_environment import first_process
from cotnet.engine.training import finished
from cotnet.errors import InputError
from cotnet.files import SWEEP_LEDGER, write_text
from cotnet.headline import NAMES, ranking_of
from cotnet.reporting.terminal import clock, say
from cotnet.settings import TrainSettings


def taken_up(folder: Path, config: Config, image_set: str) -> Config | None:
    """The configuration to train with in this folder; None if the run there is finished. Prints how far the run is.

    Raises:
        InputError: the folder holds a sweep or a run with another configuration or image set, or its checkpoint cannot
            be read.
    """
    if (folder / SWEEP_LEDGER).exists():
        raise InputError(f"{folder} holds a sweep, not a run; choose another output_dir")
    last = folder / "checkpoints" / "last.pt"
    if not last.exists():  # nothing there to protect or to continue
        return config
    checkpoint = checkpoints.load(last)
    stored, progress = stored_config(checkpoint), checkpoint["progress"]
    config = as_begun(config, stored)
    changes = compare(flatten(stored), flatten(config), str(folder))
    done = finished(typed(TrainSettings, config["train"], "train"), progress)
    if not done or stored["data"]["root"] != config["data"]["root"]:
        checkpoints.require_image_set(checkpoint, image_set, last)
    if not done:
        require_same_batches(checkpoint, last)
        if first_process():
            changed = f" ({'; '.join(changes)})" if changes else ""
            say(f"continuing {folder} at epoch {progress['epoch']}, step {progress['step']}{changed}")
        return config
    if first_process():
        best = progress["best"]
        first = ranking_of(best, "best_")[0]
        say(
            f"{folder} is finished: {progress['step']} steps, best {NAMES[first]} {best[f'best_{first}']:.2f} % "
            f"({best['best_weights']}, epoch {best['best_epoch']:g}); for a new run choose another output_dir"
        )
    return None


def require_same_batches(checkpoint: checkpoints.Checkpoint, path: Path) -> None:
    """Raises InputError if version 0.1 began the run with repeated augmentation on several micro-batches: it kept the
    copies of an image together, this version spreads them. Files of version 0.1 have no checksum."""
    config = stored_config(checkpoint)
    micro_batches = len(checkpoint["ranks"]) * config["train"].get("accumulation", 1)
    if "checksum" not in checkpoint and config["augmentation"].get("repeats", 1) > 1 and micro_batches > 1:
        raise InputError(
            f"{path} was begun by version 0.1, which kept the copies of augmentation.repeats on one rank; this version "
            f"spreads them; choose another output_dir, and start from its weights with backbone.weights={path}"
        )


def write_config(path: Path, config: Config) -> None:
    """Writes the resolved configuration, for people to read."""
    if first_process():
        write_text(path, to_yaml(config))


def say_where(folder: Path) -> None:
    """Prints the result of a finished run and its files."""
    if not first_process():
        return
    summary = json.loads((folder / "summary.json").read_text())
    ranking = ranking_of(summary, "best_")
    accuracy = ", ".join(f"{NAMES[name]} {summary[f'best_{name}']:.2f} %" for name in ranking)
    say(f"finished in {clock(summary['seconds'])}; best {accuracy} ({summary['best_weights']} weights, epoch "
        f"{summary['best_epoch']:g})")  # fmt: skip
    say(f"{folder}: checkpoints/best.pt, checkpoints/last.pt, metrics.jsonl, summary.json, curves.png, config.yaml")
    if (folder / "report.html").exists():
        say(f"to look at it: {folder / 'report.html'}")
