"""What a person gave is wrong."""


class InputError(ValueError):
    """Configuration, checkpoint or folder is wrong; the message is one line: what, where, what to do.

    The entry scripts print it and exit 2; every other exception is a bug of ours and shows its traceback.
    """


class RunError(RuntimeError):
    """A run cannot go on though nothing it was given is wrong (full disk, loss not finite): one line, exit 1."""
