"""Files written whole or not at all, and locks between processes."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SWEEP_LEDGER = "ledger.jsonl"  # a folder with this file holds a sweep


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; errors as in `write_atomic`."""
    write_atomic(path, text.encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces a file in one move; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it becomes `path` in one move once it is on the disk.

    One process at a time: the unfinished file always has the same name, so a kill leaves at most one behind. On any
    error (OSError: full disk, no permission) the old file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # same folder: a rename never crosses file systems
    try:
        with temporary.open("wb") as file:
            yield file
            flush(file)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def flush(file: BinaryIO) -> None:
    """Waits until the content is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def in_use(path: Path) -> bool:
    """Whether a process holds the lock file `path`; makes none."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; the end of the process frees it.

    The file is never removed: otherwise two processes could lock two different files of this name.

    Raises:
        BlockingIOError: another process, or another `locked` of this one, holds it.
        OSError: it cannot be made or locked.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None  # still a BlockingIOError, with a name
        yield
