"""The loggers that `logger=wandb` and `logger=none` name.

wandb is imported when a run starts: `--help` and runs without it do not wait for it.
"""

import contextlib
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torch import nn

from cotnet import records
from cotnet.errors import InputError
from cotnet.reporting import wandb_artifacts, wandb_evaluation, wandb_session, wandb_watch
from cotnet.reporting.terminal import say
from cotnet.reporting.wandb_evaluation import EvaluationContent
from cotnet.reporting.wandb_file import LocalRecord, as_logged, difference, latest_id, run_files
from cotnet.reporting.wandb_session import first_line, tear_down
from cotnet.settings import Setting

if TYPE_CHECKING:
    import wandb

Record = dict[str, Any]

READY_SECONDS = 2.0  # how long a run waits for W&B before it trains on; going offline takes about one
FINISH_SECONDS = 30.0  # what the last upload may take
UPLOAD_SECONDS = 300.0  # the same, with checkpoints; other ranks wait meanwhile, at most launch.timeout_minutes
SETTLE_SECONDS = 3.0  # wandb's process outlives a run that is killed by up to 2 s


class NoLogger:
    """No logger. Any class with these four methods is one: a mirror of metrics.jsonl, which may fail."""

    def start(self, *arguments: Any, **more: Any) -> str:  # noqa: ARG002
        """Opens or continues a run: (output_dir, config, run_id, name, kept=its records so far); returns its id."""
        return ""

    def log(self, record: Record) -> None: ...  # adds a record
    def summary(self, values: Record) -> None: ...  # sets values of the run's summary

    def finish(self, exit_code: int) -> dict[str, int]:  # noqa: ARG002
        """Ends the process's part; returns counts of `missing` and `extra` rows, if any."""
        return {}


class WandbLogger:
    """Mirrors metrics.jsonl to Weights & Biases: every record is one row of the run's history, drawn over `step`.

    All calls of wandb run in a daemon thread fed by a queue, because they can wait without a limit. After a resume W&B
    has the rows between the last checkpoint and the cut twice, at the same `step`; `finish` counts them. Rows that a
    kill lost are logged again when the run continues. Offline runs have one folder per start; `wandb sync` joins them.
    """

    def __init__(
        self,
        *,
        project: Annotated[str | None, Setting("the project at W&B; null: WANDB_PROJECT, else `cotnet`")],
        entity: Annotated[
            str | None, Setting("user or team at W&B; null: WANDB_ENTITY, else the one you are logged in to")
        ],
        group: Annotated[
            str | None,
            Setting("runs of one group are shown together; null: WANDB_RUN_GROUP, else the sweep that the run is of"),
        ],
        tags: Annotated[tuple[str, ...], Setting("words to find the run by; empty: WANDB_TAGS")],
        notes: Annotated[str | None, Setting("a text about the run; null: WANDB_NOTES")],
        job_type: Annotated[
            str | None, Setting("kind of run; null: WANDB_JOB_TYPE, else `train`, or `eval` of evaluate.py")
        ],
        artifacts: Annotated[
            bool, Setting("of training: when the run ends, log `best.pt` and `last.pt` as an artifact of type `model`")
        ],
        save_code: Annotated[
            bool, Setting("of training: log this application's code and configurations as an artifact of type `source`")
        ],
        system_metrics: Annotated[bool, Setting("log the use of processor, memory, disk, network and GPUs")],
        watch: Annotated[
            int | None,
            Setting("of training: optimizer steps between two histograms of every gradient; null: none", least=1),
        ],
        mode: Annotated[Literal["auto", "online", "offline"], Setting("`auto`: online when logged in, else offline")],
    ) -> None:
        self._mode, self._artifacts, self._save_code, self._system_metrics = mode, artifacts, save_code, system_metrics
        self.watch, self._watched = watch, threading.Event()
        names = {"project": project, "entity": entity, "group": group, "tags": tags}
        self._names: dict[str, Any] = names | {"notes": notes, "job_type": job_type}
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()  # what it is, and the thing
        self._ready, self._abandoned = threading.Event(), threading.Event()
        self._mirrors = True  # unless wandb is disabled
        self._record = LocalRecord()

    def start(
        self,
        output_dir: Path,
        config: dict[str, Any],
        run_id: str | None,
        name: str,
        *,
        kept: Sequence[Record] = (),
        defaults: Record | None = None,
    ) -> str:
        """As NoLogger's, in `output_dir`/wandb. First logs the records in `kept` that the run's local files lack.
        `defaults`: arguments of wandb.init where neither a setting nor a variable of W&B has one."""
        self._folder = output_dir.absolute()
        given = latest_id(self._folder, run_id) if run_id else os.environ.get("WANDB_RUN_ID")
        self._id, self._is_new, self._kept = given or secrets.token_hex(4), not given, kept
        self._chosen = {"dir": str(self._folder), "config": config, "resume": "allow"}
        self._defaults = {"project": "cotnet", "job_type": "train", "name": name} | (defaults or {})
        self._thread = threading.Thread(target=self._mirror, name="wandb-mirror", daemon=True)
        self._thread.start()
        self._ready.wait(READY_SECONDS)
        return self._id

    def log(self, record: Record) -> None:
        """Queues a record; returns at once."""
        self._put("row", record)

    def summary(self, values: Record) -> None:
        """Sets values of the run's summary; returns at once."""
        self._put("summary", values)

    def evaluation(self, content: EvaluationContent) -> None:
        """Shows an evaluation: its figures, tables, images and plots; returns at once."""
        self._put("evaluation", content)

    def gradients(self, step: int, model: nn.Module) -> None:
        """Queues histograms of a model's gradients; returns once they are copied. Leaves out a step while the last
        ones wait: they are as large as the model."""
        if not self._watched.is_set():
            self._watched.set()
            self._put("gradients", {"step": step} | wandb_watch.copied(model))

    def _put(self, kind: str, what: Record | EvaluationContent) -> None:
        if self._thread.is_alive():
            self._queue.put((kind, dict(what) if isinstance(what, dict) else what))

    def finish(self, exit_code: int) -> dict[str, int]:
        """Waits until everything is sent or written: at most half a minute, five minutes with checkpoints. Counts as
        NoLogger's; empty if unknown."""
        limit = UPLOAD_SECONDS if self._artifacts else FINISH_SECONDS
        deadline = time.monotonic() + limit
        self._queue.put(("end", exit_code))
        self._thread.join(limit)
        found: dict[str, int] = {}
        compare = threading.Thread(target=self._compare, args=(found,), daemon=True)
        compare.start()
        if self._thread.is_alive():
            self._abandoned.set()
            self._say_stopped(f"not done after {limit:.0f} s")
            # wandb's exit hook would wait without a limit; tearing down removes it.
            abandon = threading.Thread(target=tear_down, daemon=True)
            abandon.start()
            abandon.join(READY_SECONDS)
        compare.join(max(deadline - time.monotonic(), 0.0))
        return found if any(found.values()) else {}

    def _mirror(self) -> None:
        """The thread: opens the run, then logs records until an exit code comes."""
        try:
            run = wandb_session.open_run(str(self._mode), self._begin)
            self._ready.set()
            self._log_missing(run)
            if self._save_code and self._mirrors:
                wandb_artifacts.log_code(run)
            while (item := self._queue.get())[0] != "end":
                match item:
                    case "row", row:
                        self._log_row(run, row)
                    case "summary", values:
                        run.summary.update(values)
                    case "gradients", copies:
                        run.log(wandb_watch.histograms(copies))
                        self._watched.clear()
                    case "evaluation", content:
                        self._mirrors = False
                        wandb_evaluation.show(run, content)
            self._summarise_extra(run)
            if self._artifacts and self._mirrors and item[1] == 0:
                wandb_artifacts.log_checkpoints(run, self._folder)
            run.finish(exit_code=item[1])
        # wandb's errors have no common base: wandb.Error, OSError, its mailbox's, pydantic's. All mean the same here:
        # logging has stopped. This block uses nothing but wandb and its files.
        except Exception as error:
            if not self._abandoned.is_set():
                self._say_stopped(first_line(error))
        finally:
            tear_down()
            self._ready.set()

    def _log_missing(self, run: "wandb.Run") -> None:
        """Logs the kept records that the run's local files lack: wandb writes once a second, so a kill loses rows."""
        self._mirrors = run.settings.mode != "disabled"
        if not self._mirrors:
            return
        files = [file for file in run_files(self._folder, run.id) if file != Path(run.settings.sync_file)]
        written = max((file.stat().st_mtime for file in files), default=0.0)
        time.sleep(min(max(written + SETTLE_SECONDS - time.time(), 0.0), SETTLE_SECONDS))
        try:
            self._record = LocalRecord(files, received=math.inf if run.offline else run.starting_step)
        except Exception as error:  # files of another version of wandb, or damaged ones
            say(f"W&B: its local files cannot be read ({first_line(error)}); what they lack is not logged again")
            return
        missing, _ = self._record.compare(self._kept, all_rows=self._is_new)
        for row in missing:
            self._log_row(run, as_logged(row))
        if missing:
            say(f"W&B: logged {len(missing)} rows of metrics.jsonl again that its record lacked")
        self._summarise_extra(run)
        self._kept = ()

    def _log_row(self, run: "wandb.Run", row: Record) -> None:
        run.log(row)
        self._record.add(row)

    def _summarise_extra(self, run: "wandb.Run") -> None:
        """Puts the number of extra rows into W&B's summary."""
        with contextlib.suppress(OSError, InputError):  # metrics.jsonl cannot be read
            _, extra = self._record.compare(records.read_existing(self._folder / "metrics.jsonl"))
            run.summary.update({"extra_rows": extra} if extra else {})

    def _compare(self, found: dict[str, int]) -> None:
        """Puts the difference between the run's local files and metrics.jsonl into `found`."""
        with contextlib.suppress(Exception):  # as in _log_missing
            found |= difference(self._folder, self._id) if self._mirrors else {}

    def _begin(self, settings: "wandb.Settings", mode: str, reason: str) -> "wandb.Run":
        """Opens the run and prints where it is."""
        import wandb

        names = wandb_session.identity(self._names, settings, self._defaults)
        # `silent` only for the run: wandb's process prints nothing, its warnings still show.
        own = wandb.Settings(silent=True, x_disable_stats=not self._system_metrics)
        if self._artifacts:
            own.finish_timeout = UPLOAD_SECONDS - 10
        run = wandb.init(**self._chosen | names | {"mode": mode, "id": self._id}, settings=own)
        run.define_metric("*", step_metric="step")
        self._id = run.id  # a sweep's agent sets its own
        later = f"; to upload it later: wandb sync {self._folder / 'wandb'}" if mode == "offline" else ""
        say(f"W&B: online at {run.url}" if mode == "online" else f"W&B: {mode} ({reason}){later}")
        return run

    def _say_stopped(self, reason: str) -> None:
        kept = f"wandb sync {self._folder / 'wandb'} --include-online"
        what = "training" if self._defaults["job_type"] == "train" else "the evaluation"
        say(f"W&B stopped ({reason}), {what} did not; to upload what it kept: {kept}")
