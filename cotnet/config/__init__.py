"""From the command line to typed objects."""

import cotnet.requirements  # noqa: F401 - first of all
