"""Several runs of one program."""

import cotnet.requirements  # noqa: F401 - first of all
