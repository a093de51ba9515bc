"""The claims made for GPUs, proved or refuted."""

import cotnet.requirements  # noqa: F401 - first of all
