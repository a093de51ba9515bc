"""Where a run's figures go."""

import cotnet.requirements  # noqa: F401 - first of all
