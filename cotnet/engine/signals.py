"""Stop signals: received during a run or a sweep, forwarded to earlier handlers once the run is saved."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

from cotnet.errors import INTERRUPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of prctl, in linux/prctl.h
_LIBC = ctypes.CDLL(None)  # loaded before any fork


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Makes the kernel send this process `number` when its parent `parent` dies for any reason."""
    if not sys.platform.startswith("linux"):
        return
    _LIBC.prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call above
        os._exit(INTERRUPTED)


LAUNCHER = "COTNET_LAUNCHER"  # in the environment of a fork server: the process that starts it


def end_with_launcher() -> None:
    """In the fork server of ranks: makes it end with the launcher."""
    if launcher := os.environ.pop(LAUNCHER, None):
        end_with_parent(int(launcher), signal.SIGKILL)


@dataclass
class StopRequest:
    """Stop signals so far. With `forward`, a handler installed before ours (a cluster launcher's, which requeues the
    job) runs at the end."""

    signals: list[int] = field(default_factory=list)
    forward: bool = False

    @property
    def received(self) -> bool:
        return bool(self.signals)


def insist(received: list[int]) -> None:
    """A second Ctrl-C raises KeyboardInterrupt; a rank gets one as SIGINT and, from its parent, as SIGTERM."""
    if received.count(signal.SIGINT) > 1:
        raise KeyboardInterrupt


@contextlib.contextmanager
def stop_request(react: Callable[[list[int]], None] = insist) -> Iterator[StopRequest]:
    """Collects stop signals instead of acting on them; calls `react` with all so far at each one."""
    stop = StopRequest()

    def receive(number: int, _frame: FrameType | None) -> None:
        stop.signals.append(number)
        react(stop.signals)

    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup's SIGHUP
    previous = {number: signal.signal(number, receive) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        first = signal.getsignal(stop.signals[0]) if stop.forward and stop.signals else None
        if callable(first) and first is not signal.default_int_handler:
            first(stop.signals[0], None)
