"""What the runs of a sweep have logged: the target's best value, and how far a run is."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cotnet import records
from cotnet.config.compose import read_yaml

TAIL = 8192  # bytes of metrics.jsonl that hold its last records


def best_figure(folder: Path, target: str, direction: str) -> tuple[float, float] | None:
    """The best value of `target` in a run's metrics.jsonl, and its epoch."""
    found = [(record[target], record["epoch"]) for record in _all(folder) if record.get(target) is not None]
    choose = max if direction == "maximize" else min
    return choose(found, key=lambda pair: pair[0]) if found else None


def logged(folder: Path) -> set[str]:
    """The names of all figures in a run's metrics.jsonl."""
    return {key for record in _all(folder) for key in record}


def progress(folder: Path, target: str) -> tuple[float, str]:
    """How far a run is, from 0 to 1, and its last figures, from the end of its metrics.jsonl."""
    rows = _tail(folder / "metrics.jsonl")
    if not rows or not (folder / "config.yaml").exists():
        return 0.0, "starting"
    train = read_yaml(folder / "config.yaml")["train"]
    last: dict[str, Any] = {key: value for row in rows for key, value in row.items() if value is not None}
    share = last["epoch"] / train["epochs"]
    if train["max_steps"]:
        share = max(share, last["step"] / train["max_steps"])
    figures = [f"{key.rpartition('/')[2]} {last[key]:.4g}" for key in ("train/loss", target) if key in last]
    return share, "  ".join([f"epoch {last['epoch']:.3g}/{train['epochs']}", *figures])


def _all(folder: Path) -> Iterable[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return records.read(path) if path.exists() else ()


def _tail(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")
    rows = []
    for line in lines[:-1]:  # behind the last newline is nothing, or half a record
        try:
            rows.append(json.loads(line))
        except ValueError:  # the first one, cut
            continue
    return rows
