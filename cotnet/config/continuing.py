"""What may change when a run continues: one table for folder names, the comparison with a checkpoint, and advice."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from cotnet.engine.schedule import warmup_of
from cotnet.errors import InputError

Change = Literal["free", "grows", "moves"]  # any value; only upwards; another path of the same images
MAY_CHANGE: Final[dict[str, Change]] = {
    "output_dir": "free",
    "explain": "free",
    "launch.*": "free",
    "logger": "free",
    "logger.*": "free",
    "checkpoint.*": "free",
    "evaluation.*": "free",
    "loader.threads": "free",
    "loader.prefetch": "free",
    "data.eval_batch_size": "free",
    "train.log_every": "free",
    "train.deterministic": "free",  # the same computation: only rounding can differ, which false says
    "train.checkpointing": "free",
    "train.epochs": "grows",
    "train.max_steps": "grows",
    "train.max_minutes": "grows",
    "data.root": "moves",
}


def rule(key: str) -> Change | None:
    """How a key may change; None: it must not."""
    group = f"{key.partition('.')[0]}.*" if "." in key else ""
    return MAY_CHANGE.get(key) or MAY_CHANGE.get(group)


def names_run(override: str, *, root: bool = True) -> bool:
    """Whether an override makes another run, so that the default folder's name holds it. `root`: whether `data.root`
    does, as in sweeps and evaluations; a run compares its images by their fingerprint instead."""
    key = re.split(r"[=@]", override.lstrip("+~"))[0].replace("/", ".")
    how = rule(key)
    return (how is None or (root and how == "moves")) and key.split(".")[0] != "hydra"


def run_name(overrides: Iterable[str], *, root: bool = True) -> str:
    """A folder name for the run of these overrides, without a clock: the same command finds its run again."""
    return folder_name(override for override in overrides if names_run(override, root=root))


def default_folder(outputs: Path, overrides: Sequence[str], *, root: bool) -> Path:
    """The folder of the run of these overrides; `root` as in `names_run`. Earlier versions also put `data.root` into
    a run's name, and version 0.1 settings that may change: their runs continue in their folders."""
    free = r"[+~]*(output_dir=|explain=|(launch|checkpoint|logger|hydra)[./]|logger=)"
    first = folder_name(override for override in overrides if not re.match(free, override))
    earlier = (outputs / name for name in (first, run_name(overrides)))
    return next((at for at in earlier if (at / "checkpoints").exists()), outputs / run_name(overrides, root=root))


def folder_name(overrides: Iterable[str]) -> str:
    """The overrides as a folder's name."""
    parts = sorted(override.replace("=", "-") for override in overrides)
    name = re.sub(r"[^\w.+~-]+", "_", "__".join(parts)) or "default"  # what neither a shell nor Hydra's grammar reads
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def compare(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> list[str]:
    """The allowed differences between the flat configurations of a checkpoint and of a command, a line each.

    Raises:
        InputError: a setting differs that may not.
    """
    old, new = _with_default_warmup(theirs), _with_default_warmup(ours)
    refused: list[str] = []
    allowed: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        was, now, how = old.get(key), new.get(key), rule(key)
        if was == now or key == "output_dir":
            continue
        longer = how == "grows" and (now is None or (was is not None and now >= was))
        changes = allowed if longer or how in ("free", "moves") else refused  # images are compared by their fingerprint
        changes.append(f"{key} was {json.dumps(was)}, now {json.dumps(now)}")
    if refused:
        shown = "; ".join(refused[:8]) + (f"; and {len(refused) - 8} more" if len(refused) > 8 else "")
        raise InputError(
            f"{where} holds a run with another configuration ({shown}); choose another output_dir "
            f"(what may change: {described()})"
        )
    return allowed


def as_begun(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Our configuration with what the run was begun with in place of `auto` formats: versions that had no `auto` stored
    true or false."""
    auto = [key for key in ("channels_last", "compile") if ours["train"][key] == "auto"]
    begun = {key: theirs["train"].get(key, False) for key in auto}
    return {**ours, "train": {**ours["train"], **begun}}


def described() -> str:
    """The table in words."""
    kinds: tuple[Change, ...] = ("grows", "moves", "free")
    growing, moving, free = (", ".join(key for key in MAY_CHANGE if MAY_CHANGE[key] == how) for how in kinds)
    return f"{growing} upwards, {moving} to another path of the same images, {free}"


def _with_default_warmup(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with null for a warm-up that equals the default: it follows when the run grows."""
    given, epochs = flat.get("schedule.warmup_epochs"), flat.get("train.epochs")
    if epochs is not None and given == warmup_of(None, epochs=epochs):
        return {**flat, "schedule.warmup_epochs": None}
    return dict(flat)


def memory_advice(values: Mapping[str, Any], *, begun: bool) -> str:
    """Advice when memory runs out. `values`: flat configuration; `begun`: the run has a checkpoint, so only settings
    that may change are named."""
    advice = {
        "train.batch_size": f"lower train.batch_size={values.get('train.batch_size')}",
        "data.eval_batch_size": f"lower data.eval_batch_size={values.get('data.eval_batch_size')}",
        "train.checkpointing": "set train.checkpointing=[1,2]",
        "train.accumulation": f"set train.accumulation={2 * (values.get('train.accumulation') or 1)}",
    }
    ours = re.fullmatch(r"cotnet\.models\.(?!\w*_model$)\w+", str(values.get("backbone._target_")))
    if values.get("train.checkpointing") or not ours:
        del advice["train.checkpointing"]  # set already, or not for backbones of others
    known: Iterable[str] = (key for key in advice if key in values and not (begun and rule(key) is None))
    return " or ".join(advice[key] for key in known)
