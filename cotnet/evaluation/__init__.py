"""What an evaluation computes."""

import cotnet.requirements  # noqa: F401 - first of all
