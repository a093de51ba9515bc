"""Operators that torch does not have."""

from cotnet.ops.local_aggregation import local_aggregation

__all__ = ["local_aggregation"]
