"""A logger: validation accuracy as a CSV file."""

from pathlib import Path
from typing import Any


class CsvLogger:
    """Writes step and top-1 of each evaluation to accuracy.csv."""

    def start(self, output_dir: Path, config: dict[str, Any], run_id: str | None, name: str, **_: Any) -> str:
        """Opens the file; returns the run's id."""
        self.path = output_dir / "accuracy.csv"
        return run_id or name

    def log(self, record: dict[str, float]) -> None:
        """Adds a line for an evaluation."""
        if "val/top1" in record:
            with self.path.open("a") as file:
                file.write(f"{record['step']},{record['val/top1']}\n")

    def summary(self, values: dict[str, Any]) -> None:
        """Best accuracy so far."""

    def finish(self, exit_code: int) -> dict[str, int]:
        """End of the process; returns counts of missing and extra rows, if any."""
        return {}
