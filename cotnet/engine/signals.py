"""Stop signals: received during a run or a sweep, forwarded to earlier handlers once the run is saved."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@contextlib.contextmanager
def stop_signals(react: Callable[[list[int]], None] = lambda _received: None) -> Iterator[list[int]]:
    """Collects stop signals instead of acting on them; calls `react` with the list at each one."""
    received: list[int] = []

    def receive(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        react(received)

    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup's SIGHUP
    previous = {number: signal.signal(number, receive) for number in heard}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class StopRequest:
    """Stop signals so far; `forward` is set once the run is saved."""

    signals: list[int]
    forward: bool = False

    @property
    def received(self) -> bool:
        return bool(self.signals)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A request that any stop signal sets; a second SIGINT raises KeyboardInterrupt. Handlers installed before ours (a
    cluster launcher's, which requeues the job) run at the end if `forward` is set."""

    def insist(received: list[int]) -> None:
        if received.count(signal.SIGINT) > 1:  # a rank gets one Ctrl-C as SIGINT and, from its parent, as SIGTERM
            raise KeyboardInterrupt

    stop = StopRequest([])
    try:
        with stop_signals(insist) as stop.signals:
            yield stop
    finally:
        if stop.forward:
            forward_signal(stop.signals)


def forward_signal(received: list[int]) -> None:
    """Calls the handler of the first signal, if another program installed one."""
    handler = signal.getsignal(received[0]) if received else None
    if callable(handler) and handler is not signal.default_int_handler:
        handler(received[0], None)
