"""The logger that `logger=tensorboard` names: event files of the extra `tensorboard`, in the run's folder."""

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cotnet.errors import InputError
from cotnet.reporting.wandb_file import as_logged

Record = dict[str, Any]


class TensorBoardLogger:
    """Mirrors metrics.jsonl to TensorBoard: every figure of a record is a scalar at the record's `step`.

    A start writes the run's records so far anew and hides what earlier starts wrote, so TensorBoard shows what
    metrics.jsonl holds, each step once: also after a kill, a rollback, or a start without this logger.
    """

    def __init__(self) -> None:
        """Raises InputError without the package."""
        if importlib.util.find_spec("tensorboard") is None:
            raise InputError("logger=tensorboard needs the package tensorboard; pip install 'cotnet[tensorboard]'")

    def start(
        self,
        output_dir: Path,
        config: Record,
        run_id: str | None,
        name: str,  # noqa: ARG002 - TensorBoard calls a run by its folder
        *,
        kept: Sequence[Record] = (),
    ) -> str:
        """Opens `output_dir`/tensorboard, writes the records in `kept`, and the configuration as text at their last
        step; returns `run_id`, which another logger may have given."""
        self._folder = output_dir / "tensorboard"
        _put_first(self._folder)
        self._open(hidden_from=0)
        for row in kept:
            self._write(as_logged(row))
        step = kept[-1]["step"] if kept else 0
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", step)
        self._writer.flush()
        return run_id or ""

    def log(self, record: Record) -> None:
        """Writes a record and hands it to the operating system before returning: it outlives a kill."""
        if record["step"] < self._next_step.get(_kind(record), 0):  # back in front of what is written: a rollback
            self._writer.close()
            self._open(hidden_from=record["step"])
        self._write(record)
        self._writer.flush()

    def summary(self, values: Record) -> None:
        """Nothing: TensorBoard has no summary of a run."""

    def finish(self, exit_code: int) -> dict[str, int]:  # noqa: ARG002
        """Closes the file."""
        self._writer.close()
        return {}

    def _open(self, *, hidden_from: int) -> None:
        """A new file; TensorBoard hides what earlier ones hold of this step and later ones."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=hidden_from)
        self._next_step: dict[str, int] = {}  # after the last record of each kind

    def _write(self, record: Record) -> None:
        step, kind = record["step"], _kind(record)
        self._next_step[kind] = step + 1
        for name, value in record.items():
            if name != "step" and (kind, name) != ("val", "epoch"):  # the training record of this step has the epoch
                self._writer.add_scalar(name, value, step)


def _put_first(folder: Path) -> None:
    """Earlier files come before a new one, in whatever order: TensorBoard sorts them by the second in their names, and
    another machine's clock may be ahead, or a start that ended at once may be of this second."""
    now = int(time.time())
    for file in folder.glob("events.out.tfevents.*"):
        *prefix, second, rest = file.name.split(".", 4)
        if int(second) >= now:
            file.rename(file.with_name(".".join([*prefix, f"{now - 1:010d}", rest])))


def _kind(record: Record) -> str:
    return "val" if any(name.startswith("val/") for name in record) else "train"
