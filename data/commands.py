"""What the commands of this package share: work in processes, numbers on the command line, trouble on one line."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeVar

from rich.progress import track

from data.samples import DataError

INTERRUPTED: Final = 75  # the exit code of everything here that the same command continues
_T = TypeVar("_T")
_R = TypeVar("_R")


def positive(text: str) -> int:
    """A whole number above 0 from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def in_processes(
    function: Callable[[_T], _R], items: Sequence[_T], *, workers: int, title: str, chunk: int = 1
) -> Iterator[_R]:
    """function(item) for all items in order, by `workers` processes, with a progress bar on a terminal."""
    # Forked from a clean server: the caller may have threads, whose locks a fork would copy. Ctrl-C is for the parent.
    context = get_context("forkserver")
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=signal.signal, initargs=ignore) as pool:
        try:
            done = pool.map(function, items, chunksize=chunk)
            yield from track(done, title, total=len(items), disable=not sys.stdout.isatty(), transient=True)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker was killed, perhaps for want of memory; try again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interruption waits for what runs, not for the rest


def exit_code(work: Callable[[], int], where: Path) -> int:
    """What work() returns; what a person can mend, and Ctrl-C, as one line with a code of its own.

    where: what an error that names no file is about.
    """
    try:
        return work()
    except DataError as error:
        line, code = str(error), 2
    except OSError as error:
        line, code = f"{error.filename or where}: {error.strerror or error}; mend it or make room, and try again", 2
    except KeyboardInterrupt:
        line, code = "interrupted; the same command goes on", INTERRUPTED
    sys.stderr.write(f"{line}\n")
    return code
