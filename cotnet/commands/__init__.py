"""What a person runs."""

import cotnet.requirements  # noqa: F401 - first of all
