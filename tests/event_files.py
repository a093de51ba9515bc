"""TensorBoard's own reader of event files, and what it must find for a run."""

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cotnet import records


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each figure of the run in `folder`, as TensorBoard shows them."""
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    events = {name: found.Scalars(name) for name in found.Tags()["scalars"]}  # a hidden one keeps its name
    return {name: [(event.step, event.value) for event in own] for name, own in events.items() if own}


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.jsonl, in float32; the epoch once per step."""
    found: dict[str, dict[int, float]] = {}
    for row in records.read(folder / "metrics.jsonl"):
        for name, value in row.items():
            if name != "step":
                found.setdefault(name, {})[row["step"]] = float(np.float32(np.nan if value is None else value))
    return {name: sorted(values.items()) for name, values in found.items()}


def assert_shown(folder: Path) -> None:
    """TensorBoard shows what metrics.jsonl holds: every figure at its step, once."""
    shown, wanted = scalars(folder), expected(folder)
    assert shown.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(np.array(shown[name]), np.array(values), err_msg=name)
