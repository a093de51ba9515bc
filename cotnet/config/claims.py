"""The lock of an output folder. No torch here: cotnet.sync starts in half a second."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cotnet.engine.rank_environment import first_process
from cotnet.errors import InputError
from cotnet.files import locked


@contextmanager
def claimed(folder: Path, otherwise: str = "choose another output_dir") -> Iterator[None]:
    """Makes the folder and locks it: two runs never write into one. `otherwise`: the advice if that fails.

    Raises:
        InputError: the folder cannot be made or written, or another process holds it.
    """
    if not first_process():
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / ".lock"))
        except BlockingIOError:
            raise InputError(f"{folder} is in use by another process; wait for it or {otherwise}") from None
        except OSError as error:
            raise InputError(f"cannot write into {folder}: {error.strerror}; {otherwise}") from None
        yield
