"""wandb's settings, its process and its account, and which run it opens: online or offline, under which names.

wandb is imported when it is used: `--help` and runs without it do not wait for it.
"""

import contextlib
import netrc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from cotnet.reporting.wandb_file import no_error_reports

if TYPE_CHECKING:
    import wandb

INIT_SECONDS = 15.0  # a server that has not answered by then is left alone

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
    "finish_timeout": 20.0,
    "finish_timeout_raises": True,
    "x_disable_stats": True,
    "x_transaction_log_flush_interval": 1.0,  # at most a second of figures is lost to a kill
}

# Arguments of wandb.init -> wandb's settings, which its variables (WANDB_PROJECT, WANDB_NAME, ...) and its files set.
IDENTITY: Final = {
    "project": "project",
    "entity": "entity",
    "name": "run_name",
    "group": "run_group",
    "tags": "run_tags",
    "notes": "run_notes",
    "job_type": "run_job_type",
}


def identity(keys: Mapping[str, Any], settings: "wandb.Settings", defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The names of a run as arguments of wandb.init. Of each, the first that is not null or empty: our key, wandb's
    variable or settings file (null here: wandb reads them itself), the default."""
    left = {name: None if getattr(settings, of_wandb) else defaults.get(name) for name, of_wandb in IDENTITY.items()}
    return {name: keys.get(name) or other for name, other in left.items()}


def open_run(mode: str, begin: Callable[["wandb.Settings", str, str], "wandb.Run"]) -> "wandb.Run":
    """The run that `begin(settings, mode, reason)` begins: online if wanted and possible, else offline. `mode` as
    `logger.mode`."""
    settings, reason = set_up(), "logger.mode"
    if mode == "auto":
        mode, reason = settings.mode, "W&B's own setting"  # WANDB_MODE, `wandb offline`; online otherwise
    if mode == "online" and not logged_in(settings):
        mode, reason = "offline", "not logged in"
    if mode == "online":
        try:
            return begin(settings, mode, reason)
        # wandb's errors have no common base; after any of them the run goes offline.
        except Exception as error:
            mode, reason = "offline", f"{settings.base_url}: {first_line(error)}"
            tear_down()  # the id stays taken until wandb's process is gone
            settings = set_up()
    return begin(settings, mode, reason)


def set_up() -> "wandb.Settings":
    """wandb's settings from its files, the environment and `WANDB_SETTINGS`; starts its process."""
    no_error_reports()
    import wandb

    known = {name: value for name, value in WANDB_SETTINGS.items() if name in wandb.Settings.model_fields}
    return wandb.setup(settings=wandb.Settings(**known)).settings  # those that begin with x_ come and go


def tear_down() -> None:
    """Ends wandb's process and removes its exit hook, if they are still there."""
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


@contextmanager
def wandb_settings() -> Iterator["wandb.Settings"]:
    """wandb's settings; its process ends with the block."""
    try:
        yield set_up()
    finally:
        tear_down()


def account() -> tuple[bool, str]:
    """Whether a key is known, and the server's address; asks no server."""
    with wandb_settings() as settings:
        return logged_in(settings), settings.base_url


def login_state() -> str:
    """A line for people: whether runs would go online; asks no server."""
    try:
        return "logged in" if account()[0] else "not logged in: runs are kept offline (wandb login changes that)"
    except Exception as error:  # wandb's errors have no common base
        return f"cannot be used ({first_line(error)})"


def logged_in(settings: "wandb.Settings") -> bool:
    """Whether wandb would find a key without asking a person for it."""
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return urlsplit(settings.base_url).netloc in hosts or any("wandb" in host for host in hosts)


def first_line(error: Exception) -> str:
    """The first line of an error, for a message."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
