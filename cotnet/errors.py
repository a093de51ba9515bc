"""What can go wrong, and the exit code that tells of it: 0 done, FAILED, WRONG_INPUT, INTERRUPTED."""

FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 75  # EX_TEMPFAIL: the same command continues


class InputError(ValueError):
    """Configuration, checkpoint or folder is wrong; the message is one line: what, where, what to do.

    The programs print it and exit 2. Any other exception except RunError is a bug and shows its traceback.
    """


class DataError(InputError):
    """The given images, or a setting about them, are wrong."""


class RunError(RuntimeError):
    """A run cannot go on though nothing it was given is wrong (full disk, loss not finite): one line, exit 1."""
