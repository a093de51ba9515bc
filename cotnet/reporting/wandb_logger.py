"""The loggers that `logger=` names: Weights & Biases, or none.

wandb is imported when a run starts: `--help` and runs without it do not wait for it.
"""

import contextlib
import math
import netrc
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from cotnet import records
from cotnet.errors import InputError
from cotnet.reporting.terminal import say
from cotnet.reporting.wandb_file import LocalRecord, as_logged, difference, latest_id, run_files
from cotnet.settings import Setting

if TYPE_CHECKING:
    import wandb

Record = dict[str, Any]

READY_SECONDS = 2.0  # how long a run waits for W&B before it trains on; going offline takes about one
INIT_SECONDS = 15.0  # a server that has not answered by then is left alone
FINISH_SECONDS = 30.0  # what the last upload may take
SETTLE_SECONDS = 3.0  # wandb's process outlives a run that is killed by up to 2 s

WANDB_SETTINGS: dict[str, Any] = {
    "show_info": False,
    "show_colors": False,
    "quiet": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "login_timeout": 1.0,
    "init_timeout": INIT_SECONDS,
    "finish_timeout": FINISH_SECONDS - 10,
    "finish_timeout_raises": True,
    "x_disable_stats": True,
    "x_transaction_log_flush_interval": 1.0,  # at most a second of figures is lost to a kill
}


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
        project: Annotated[str, Setting("the project at W&B")],
        entity: Annotated[str | None, Setting("user or team at W&B; null: the one you are logged in to")],
        group: Annotated[str | None, Setting("runs of one group are shown together")],
        tags: Annotated[tuple[str, ...], Setting("words to find the run by")],
        mode: Annotated[Literal["auto", "online", "offline"], Setting("`auto`: online when logged in, else offline")],
    ) -> None:
        self._mode = mode
        self._chosen: dict[str, Any] = {"project": project, "entity": entity, "group": group, "tags": tags}
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()  # what it is, and the thing
        self._ready, self._abandoned = threading.Event(), threading.Event()
        self._mirrors = True  # unless wandb is disabled
        self._record = LocalRecord()

    def start(
        self, output_dir: Path, config: dict[str, Any], run_id: str | None, name: str, *, kept: Sequence[Record] = ()
    ) -> str:
        """As NoLogger's, in `output_dir`/wandb. First logs the records in `kept` that the run's local files lack."""
        self._folder = output_dir.absolute()
        given = latest_id(self._folder, run_id) if run_id else os.environ.get("WANDB_RUN_ID")
        self._id, self._is_new, self._kept = given or secrets.token_hex(4), not given, kept
        self._chosen |= {"dir": str(self._folder), "config": config, "name": name, "resume": "allow"}
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

    def _put(self, kind: str, values: Record) -> None:
        if self._thread.is_alive():
            self._queue.put((kind, dict(values)))

    def finish(self, exit_code: int) -> dict[str, int]:
        """Waits at most half a minute until everything is sent or written. Counts as NoLogger's; empty if unknown."""
        deadline = time.monotonic() + FINISH_SECONDS
        self._queue.put(("end", exit_code))
        self._thread.join(FINISH_SECONDS)
        found: dict[str, int] = {}
        compare = threading.Thread(target=self._compare, args=(found,), daemon=True)
        compare.start()
        if self._thread.is_alive():
            self._abandoned.set()
            self._say_stopped(f"not done after {FINISH_SECONDS:.0f} s")
            # wandb's exit hook would wait without a limit; tearing down removes it.
            abandon = threading.Thread(target=_tear_down, daemon=True)
            abandon.start()
            abandon.join(READY_SECONDS)
        compare.join(max(deadline - time.monotonic(), 0.0))
        return found if any(found.values()) else {}

    def _mirror(self) -> None:
        """The thread: opens the run, then logs records until an exit code comes."""
        try:
            run = self._open()
            self._ready.set()
            self._log_missing(run)
            while (item := self._queue.get())[0] != "end":
                if item[0] == "row":
                    self._log_row(run, item[1])
                else:
                    run.summary.update(item[1])
            self._summarise_extra(run)
            run.finish(exit_code=item[1])
        # wandb's errors have no common base: wandb.Error, OSError, its mailbox's, pydantic's. All mean the same here:
        # logging has stopped. This block uses nothing but wandb and its files.
        except Exception as error:
            if not self._abandoned.is_set():
                self._say_stopped(_first_line(error))
        finally:
            _tear_down()
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
            say(f"W&B: its local files cannot be read ({_first_line(error)}); what they lack is not logged again")
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

    def _open(self) -> "wandb.Run":
        """The run, online if wanted and possible, else offline; prints which."""
        settings = _set_up()
        mode, reason = str(self._mode), "logger.mode"
        if mode == "auto":
            mode, reason = settings.mode, "W&B's own setting"  # WANDB_MODE, `wandb offline`; online otherwise
        if mode == "online" and not _logged_in(settings):
            mode, reason = "offline", "not logged in"
        if mode == "online":
            try:
                return self._begin(mode)
            # Any error, as in _mirror: the run goes offline.
            except Exception as error:
                mode, reason = "offline", f"{settings.base_url}: {_first_line(error)}"
                _tear_down()  # the id stays taken until wandb's process is gone
                _set_up()
        return self._begin(mode, reason)

    def _begin(self, mode: str, reason: str = "") -> "wandb.Run":
        import wandb

        # `silent` only for the run: wandb's process prints nothing, its warnings still show.
        run = wandb.init(**self._chosen | {"mode": mode, "id": self._id}, settings=wandb.Settings(silent=True))
        run.define_metric("*", step_metric="step")
        self._id = run.id  # a sweep's agent sets its own
        later = f"; to upload it later: wandb sync {self._folder / 'wandb'}" if mode == "offline" else ""
        say(f"W&B: online at {run.url}" if mode == "online" else f"W&B: {mode} ({reason}){later}")
        return run

    def _say_stopped(self, reason: str) -> None:
        kept = f"wandb sync {self._folder / 'wandb'} --include-online"
        say(f"W&B stopped ({reason}), training did not; to upload what it kept: {kept}")


def _set_up() -> "wandb.Settings":
    """wandb's settings from its files, the environment and `WANDB_SETTINGS`; starts its process."""
    # wandb's error reporting can delay the exit by 10 s when the network drops packets.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    known = {name: value for name, value in WANDB_SETTINGS.items() if name in wandb.Settings.model_fields}
    return wandb.setup(settings=wandb.Settings(**known)).settings  # those that begin with x_ come and go


def _tear_down() -> None:
    """Ends wandb's process and removes its exit hook, if they are still there."""
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


@contextmanager
def wandb_settings() -> Iterator["wandb.Settings"]:
    """wandb's settings; its process ends with the block."""
    try:
        yield _set_up()
    finally:
        _tear_down()


def account() -> tuple[bool, str]:
    """Whether a key is known, and the server's address; asks no server."""
    with wandb_settings() as settings:
        return _logged_in(settings), settings.base_url


def login_state() -> str:
    """A line for people: whether runs would go online; asks no server."""
    try:
        return "logged in" if account()[0] else "not logged in: runs are kept offline (wandb login changes that)"
    except Exception as error:  # see WandbLogger._mirror
        return f"cannot be used ({_first_line(error)})"


def _logged_in(settings: "wandb.Settings") -> bool:
    """Whether wandb would find a key without asking a person for it."""
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return urlsplit(settings.base_url).netloc in hosts or any("wandb" in host for host in hosts)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
