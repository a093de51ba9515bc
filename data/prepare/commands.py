"""Shared by data.prepare and data.check: worker processes, a lock on a set, errors on one line."""

import argparse
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from errno import EACCES, EPERM, EROFS
from functools import partial
from math import inf
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Final, TypeVar

from rich.progress import track

from cotnet.errors import INTERRUPTED, WRONG_INPUT, DataError
from cotnet.files import locked

_T = TypeVar("_T")
_R = TypeVar("_R")
_STOPPED: Final[list[ctypes.c_bool]] = []  # in a worker: shared with its parent


def positive(text: str, most: float = inf) -> int:
    """A whole number from the command line, above 0 and at most `most`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    if int(text) > most:
        raise argparse.ArgumentTypeError(f"{text} is above {most}")
    return int(text)


processes: Final = partial(positive, most=1024)  # a number of worker processes from the command line


@contextmanager
def claimed(path: Path, *, remedy: str = "wait for it or choose another --out") -> Iterator[None]:
    """Hold a set or list for this process. Raises DataError with the remedy if another process holds it.

    The hidden lock file is beside `path`, because a set appears by a rename. It is inside if the folder above is not
    writable, such as above a mounted disk.
    """
    full = path.resolve()
    beside, inside = full.parent / f".{full.name}.lock", full / ".lock"
    with ExitStack() as stack:
        try:
            try:
                stack.enter_context(locked(beside))
            except OSError as error:
                if error.errno not in (EACCES, EPERM, EROFS) or not full.is_dir():
                    raise
                stack.enter_context(locked(inside))
        except BlockingIOError:
            raise DataError(f"{path} is in use by another process; {remedy}") from None
        yield


def in_processes(
    function: Callable[[_T], _R], items: Sequence[_T], *, workers: int, title: str, chunk: int = 1
) -> Iterator[_R]:
    """function(item) for all items in order, by `workers` processes, with a progress bar on a terminal.

    After an error or Ctrl-C, running items finish and no other begins. Workers end with their parent, even if it is
    killed. Raises DataError if a worker is killed.
    """
    context = get_context("forkserver")  # a fork would copy locks that the caller's threads hold
    stopped = context.RawValue(ctypes.c_bool)  # without a lock, which a killed worker could hold
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(stopped,)) as pool:
        try:
            done = pool.map(partial(_unless_stopped, function), items, chunksize=chunk)
            yield from track(done, title, total=len(items), disable=not sys.stdout.isatty(), transient=True)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker was killed, perhaps for want of memory; try again with fewer --workers"
            ) from error
        finally:
            stopped.value = True  # the pool cannot cancel items that workers hold
            pool.shutdown(cancel_futures=True)


def _start_worker(stopped: ctypes.c_bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    _STOPPED.append(stopped)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the process that uses it dies. The worker's own parent is the fork server."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(INTERRUPTED)


def _unless_stopped(function: Callable[[_T], _R], item: _T) -> _R:
    if any(stopped.value for stopped in _STOPPED):
        raise InterruptedError("not begun")  # nothing waits for this result
    return function(item)


def exit_code(work: Callable[[], int], where: Path) -> int:
    """work()'s exit code. Wrong input, system errors and Ctrl-C become one line on stderr with their own code.

    where: named in system errors without a file.
    """
    try:
        return work()
    except DataError as error:
        line, code = str(error), WRONG_INPUT
    except OSError as error:
        line = f"{error.filename or where}: {error.strerror or error}; mend it or make room, and try again"
        code = WRONG_INPUT
    except KeyboardInterrupt:
        line, code = "interrupted; the same command goes on", INTERRUPTED
    sys.stderr.write(f"{line}\n")
    return code
