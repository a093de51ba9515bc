"""The mirrors of metrics.jsonl that `logger=` names: Weights & Biases, or none.

wandb is imported when a run starts, so that `--help` and a run without it do not wait for it.
"""

import contextlib
import http.client
import netrc
import os
import queue
import secrets
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from cotnet.engine.terminal import say
from cotnet.errors import InputError, RunError

if TYPE_CHECKING:
    import wandb

Record = dict[str, Any]

READY_SECONDS = 2.0  # how long a run waits for W&B before it trains on; going offline takes about one
INIT_SECONDS = 15.0  # a server that has not answered by then is left alone
FINISH_SECONDS = 30.0  # what the last upload may take
ANSWER_SECONDS = 10.0  # what a server's first answer may take before offline runs are sent to it

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
    """The mirror that shows nothing."""

    def start(self, output_dir: Path, config: dict[str, Any], run_id: str | None, name: str) -> str:  # noqa: ARG002
        """The empty run id."""
        return ""

    def log(self, record: Record) -> None:
        """Does nothing."""

    def finish(self, exit_code: int) -> None:
        """Does nothing."""


class WandbLogger:
    """Weights & Biases as a mirror of metrics.jsonl: every record is one row of the run's history, drawn over `step`.

    Everything that calls wandb runs in a thread of its own, fed by a queue, because training must neither wait for
    it nor end with it: wandb's finish waits for the network longer than its own limit when much is left to send, and
    its log call waits when wandb's process hangs. The thread is a daemon, so it cannot hold the process either.

    One process (rank 0) uses it. After a resume the server holds the rows between the last checkpoint and the
    interruption twice, at the same `step`. Offline runs lie in one folder per start; `wandb sync` joins them.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        group: str | None,
        tags: tuple[str, ...],
        mode: Literal["auto", "online", "offline"],
    ) -> None:
        self._mode = mode
        self._chosen: dict[str, Any] = {"project": project, "entity": entity, "group": group, "tags": tags}
        self._queue: queue.SimpleQueue[Record | int] = queue.SimpleQueue()
        self._ready, self._abandoned = threading.Event(), threading.Event()

    def start(self, output_dir: Path, config: dict[str, Any], run_id: str | None, name: str) -> str:
        """Opens the run under `output_dir`/wandb, or continues the one `run_id` names; the run's id."""
        self._id, self._folder = run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), output_dir.absolute()
        self._chosen |= {"dir": str(self._folder), "config": config, "name": name, "resume": "allow"}
        self._thread = threading.Thread(target=self._mirror, name="wandb-mirror", daemon=True)
        self._thread.start()
        self._ready.wait(READY_SECONDS)
        return self._id

    def log(self, record: Record) -> None:
        """Hands a record over; returns at once."""
        if self._thread.is_alive():
            self._queue.put(dict(record))

    def finish(self, exit_code: int) -> None:
        """Waits until everything is sent or written, at most half a minute."""
        self._queue.put(exit_code)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self._abandoned.set()
            self._say_stopped(f"not done after {FINISH_SECONDS:.0f} s")
            # wandb has an exit hook that would wait without a limit; tearing down takes it away before it waits too.
            abandon = threading.Thread(target=_tear_down, daemon=True)
            abandon.start()
            abandon.join(READY_SECONDS)

    def _mirror(self) -> None:
        """The thread: open the run, then one row per record, until an exit code comes."""
        try:
            run = self._open()
            self._ready.set()
            while isinstance(item := self._queue.get(), dict):
                run.log(item)
            run.finish(exit_code=item)
        # wandb raises wandb.Error, OSError, its mailbox's own exceptions and pydantic's, without a common base. All
        # of them mean the same here: the mirror is gone. Nothing but wandb is called in this block.
        except Exception as error:
            if not self._abandoned.is_set():
                self._say_stopped(_first_line(error))
        finally:
            _tear_down()
            self._ready.set()

    def _open(self) -> "wandb.Run":
        """The run, online if asked for and possible, else offline; says which."""
        settings = _set_up()
        mode, reason = str(self._mode), "logger.mode"
        if mode == "auto":
            mode, reason = settings.mode, "W&B's own setting"  # WANDB_MODE, `wandb offline`; online otherwise
        if mode == "online" and not _logged_in(settings):
            mode, reason = "offline", "not logged in"
        if mode == "online":
            try:
                return self._begin(mode)
            # As in _mirror: whatever kept it from going online does not keep it from going offline.
            except Exception as error:
                reason = f"{settings.base_url}: {_first_line(error)}"
                _tear_down()  # the id stays taken until wandb's process is gone
                _set_up()
            mode = "offline"
        return self._begin(mode, reason)

    def _begin(self, mode: str, reason: str = "") -> "wandb.Run":
        import wandb

        # `silent` for the run alone, which keeps wandb's process from printing; wandb's own warnings still show.
        run = wandb.init(**self._chosen | {"mode": mode, "id": self._id}, settings=wandb.Settings(silent=True))
        run.define_metric("*", step_metric="step")
        self._id = run.id  # a sweep's agent sets its own
        if mode == "online":
            say(f"W&B: online at {run.url}")
        else:
            say(f"W&B: {mode} ({reason})" + ("; to upload it later: " + self._sync() if mode == "offline" else ""))
        return run

    def _say_stopped(self, reason: str) -> None:
        say(f"W&B stopped ({reason}), training did not; to upload what it kept: {self._sync()} --include-online")

    def _sync(self) -> str:
        return f"wandb sync {self._folder / 'wandb'}"


def _set_up() -> "wandb.Settings":
    """wandb's settings from its files, the environment and `WANDB_SETTINGS`; starts its process."""
    # Otherwise wandb reports on itself, offline too, and a network that swallows packets holds up the exit by 10 s.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    known = {name: value for name, value in WANDB_SETTINGS.items() if name in wandb.Settings.model_fields}
    return wandb.setup(settings=wandb.Settings(**known)).settings  # those that begin with x_ come and go


def _tear_down() -> None:
    """Ends wandb's process and takes its exit hook away; a process that is gone already is no news."""
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def login_state() -> str:
    """For people: whether runs would go online; asks no server."""
    try:
        settings = _set_up()
        return (
            "logged in" if _logged_in(settings) else "not logged in: runs are kept offline (wandb login changes that)"
        )
    except Exception as error:  # see WandbLogger._mirror
        return f"cannot be used ({_first_line(error)})"
    finally:
        _tear_down()


def upload(files: Sequence[Path]) -> None:
    """Send offline runs, given by their .wandb files, to the server; files of one run id become one run, in order.

    Raises:
        InputError: nobody is logged in.
        RunError: the server does not answer, or did not take everything; what it did not take stays to be sent.
    """
    try:
        settings = _set_up()
        known, server = _logged_in(settings), settings.base_url
    finally:
        _tear_down()
    if not known:
        raise InputError(f"not logged in to W&B, {len(files)} offline runs wait; run wandb login, then this again")
    _require_answer(server)
    command = [sys.executable, "-m", "wandb", "sync", "--yes", *(str(file.parent) for file in files)]
    complaints = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            say(line.rstrip())
            complaints += line if "ERROR" in line else ""
    # wandb marks a run as sent, and exits with 0, even where the server refused it.
    refused = [file for file in files if file.stem.removeprefix("run-") in complaints]
    for file in refused or (files if complaints else ()):
        sent_mark(file).unlink(missing_ok=True)
    left = sum(not sent_mark(file).exists() for file in files)
    if left:
        raise RunError(
            f"{left} of {len(files)} offline runs were not sent, for the reasons above; they stay to be sent"
        )


def sent_mark(file: Path) -> Path:
    """The empty file by which `wandb sync` knows a .wandb file that it has sent."""
    return file.with_name(f"{file.name}.synced")


def _require_answer(server: str) -> None:
    """Raise RunError where the server is out of order: `wandb sync` would wait for it without an end."""
    try:
        with urllib.request.urlopen(server, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return
        reason = str(error)
    except (OSError, http.client.HTTPException) as error:
        reason = _first_line(error)
    raise RunError(f"W&B at {server} does not answer ({reason}); nothing was sent, try again later") from None


def _logged_in(settings: "wandb.Settings") -> bool:
    """Whether wandb would find a key without asking for it, which it does on a terminal."""
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return urlsplit(settings.base_url).netloc in hosts or any("wandb" in host for host in hosts)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
