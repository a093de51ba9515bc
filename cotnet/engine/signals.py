"""Stop signals: heard while a run or a sweep lasts, handed on when it is saved."""

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
    """Let the kernel send this process `number` when its parent, process `parent`, dies of whatever cause."""
    if not sys.platform.startswith("linux"):
        return
    _LIBC.prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call above
        os._exit(INTERRUPTED)


@contextlib.contextmanager
def stop_signals(react: Callable[[list[int]], None] = lambda _received: None) -> Iterator[list[int]]:
    """The stop signals that arrived meanwhile, instead of what they do; at each `react` is called with them."""
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
    """What the loop reads between steps; `hand_on` is set when the run is saved."""

    signals: list[int]
    hand_on: bool = False

    @property
    def received(self) -> bool:
        return bool(self.signals)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A request that any stop signal makes; a second SIGINT raises as usual. Who handled a signal before us (a
    cluster's launcher, which requeues the job) gets it at the end if `hand_on` is set."""

    def insist(received: list[int]) -> None:
        if received.count(signal.SIGINT) > 1:  # a rank gets one Ctrl-C as SIGINT and, from its parent, as SIGTERM
            raise KeyboardInterrupt

    stop = StopRequest([])
    try:
        with stop_signals(insist) as stop.signals:
            yield stop
    finally:
        if stop.hand_on:
            hand_on(stop.signals)


def hand_on(received: list[int]) -> None:
    """Call the handler that the first of the signals has now, if somebody else's program set one."""
    handler = signal.getsignal(received[0]) if received else None
    if callable(handler) and handler is not signal.default_int_handler:
        handler(received[0], None)
