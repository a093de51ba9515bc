"""Measurements; no other package imports them."""

import cotnet.requirements  # noqa: F401 - first of all
