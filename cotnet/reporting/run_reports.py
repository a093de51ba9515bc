"""What rank 0 writes about a run: metrics.jsonl first, then everything that mirrors it."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cotnet import records
from cotnet.engine.evaluation import Interrupted
from cotnet.engine.state import State
from cotnet.engine.step import Reports
from cotnet.errors import FAILED, INTERRUPTED
from cotnet.headline import CLASSIFICATION
from cotnet.reporting.alerts import Alerts
from cotnet.reporting.curves import draw_curves
from cotnet.reporting.terminal import Progress, say
from cotnet.reporting.wandb_logger import NoLogger


class RunReports(Reports):
    """metrics.jsonl, environment.jsonl, summary.json, curves.png, the page, the terminal, warnings, and a logger."""

    def __init__(
        self,
        folder: Path,
        logger: NoLogger,
        state: State,
        *,
        epochs: int,
        max_steps: int | None,
        classes: int,
        config: dict[str, Any],
        environment: dict[str, Any],
        steps_per_epoch: int,
        terminal: bool,
        page: Callable[[Path], object],
        ranking: tuple[str, str] = CLASSIFICATION,
    ) -> None:
        """Continues the records at the state's step. `config` and `environment` are for the logger to show; `page`
        writes the report of the run in a folder; `ranking` as in TrainContext."""
        self.folder, self.logger, self.classes, self.page, self.ranking = folder, logger, classes, page, ranking
        self.metrics = folder / "metrics.jsonl"
        self._cut_back(state)
        records.append(folder / "environment.jsonl", environment)
        kept, told = records.read_existing(self.metrics), config | {"environment": environment}
        state.run_id = logger.start(folder, told, state.run_id or None, folder.name, kept=kept)
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        whole = epochs * steps_per_epoch
        self.progress = Progress(min(whole, max_steps or whole), ranking, enabled=terminal)

    def epoch(self, state: State) -> None:
        """An epoch begins, or the rest of one."""
        self._epoch_started = time.monotonic()
        self.progress.start_epoch(state.epoch, self.epochs, self.steps_per_epoch, state.batch_in_epoch)

    def step(self) -> None:
        self.progress.advance()

    def gradients(self, state: State) -> None:
        """The logger gets them every `logger.watch` steps, if it has such a setting. Changes nothing of the run."""
        every = getattr(self.logger, "watch", None)
        if every is not None and (state.step + 1) % every == 0:
            self.logger.gradients(state.step + 1, state.model)  # type: ignore[attr-defined]

    def train(self, record: dict[str, float]) -> None:
        self._write(record)
        self.progress.figures(record)

    def validation(self, record: dict[str, float], state: State) -> None:
        self._write(record)
        self.progress.epoch_line(record, time.monotonic() - self._epoch_started)
        self.status("running", state)
        self.page(self.folder)

    def before_save(self) -> None:
        """metrics.jsonl reaches the disk before the checkpoint that relies on it."""
        records.sync(self.metrics)

    def rolled_back(self, state: State, line: str) -> None:
        """The records after the state's step are gone, and a line says why."""
        self._cut_back(state)
        say(line)

    def status(self, status: str, state: State) -> None:
        best = dict.fromkeys([*(f"best_{name}" for name in self.ranking), "best_epoch", "best_weights"]) | state.best
        rate = state.trained_images / state.train_seconds if state.train_seconds else None
        summary = {"status": status, **best, "images_per_second": rate, "seconds": state.tick()}
        summary["warnings"] = self.alerts.warnings
        records.write_json(self.folder / "summary.json", summary)
        if state.best:
            self.logger.summary(state.best | records.best_figures(records.read_existing(self.metrics)))
        if status != "running":
            draw_curves(self.metrics, self.folder / "curves.png")
            self.page(self.folder)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.progress.close()
        differs = self.logger.finish(0 if kind is None else INTERRUPTED if kind is Interrupted else FAILED)
        if not differs:
            return
        say(
            f"warning: W&B's record lacks {differs['missing']} rows of metrics.jsonl and has {differs['extra']} that "
            f"were rolled back or logged twice; to rebuild it: python -m cotnet.sync --rebuild {self.folder}"
        )
        path = self.folder / "summary.json"
        with contextlib.suppress(OSError, ValueError):  # the run has ended, and may have ended for want of room
            records.write_json(path, json.loads(path.read_text()) | {"wandb": differs})

    def _write(self, record: dict[str, float]) -> None:
        records.append(self.metrics, record)
        self.logger.log(record)
        if warning := self.alerts.see(record):
            say(warning)

    def _cut_back(self, state: State) -> None:
        if state.window_steps == state.step:  # nothing has been logged yet
            self.metrics.touch()
        records.cut_back(self.metrics, state.step, evaluated=state.last_eval_step == state.step)
        self.alerts = Alerts(self.classes, records.read_existing(self.metrics))
