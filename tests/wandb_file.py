"""The package's reader of .wandb files, under the name that tests know it by, and what only tests read."""

from pathlib import Path

from cotnet.reporting.wandb_file import read_start, values_of, wandb_records

__all__ = ["history", "summary", "wandb_records"]


def history(path: Path) -> list[dict[str, object]]:
    """The rows that one start logged."""
    return [row for _, row in read_start(path).rows]


def summary(path: Path) -> dict[str, object]:
    """The run's summary as this start left it, without wandb's own values."""
    values: dict[str, object] = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "summary":
            values |= values_of(record.summary.update)
    return values
