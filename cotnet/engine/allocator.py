"""How the C library keeps the memory of tensors on a CPU."""

import ctypes
import sys
from typing import Final

import torch

# mallopt's names in malloc.h of the GNU C library
TRIM_THRESHOLD: Final = -1
MMAP_MAX: Final = -4
NEVER: Final = -1


def keep_freed_memory(device: torch.device) -> None:
    """Keep what tensors on a CPU have freed for the next ones, as the caching allocator of a GPU does.

    The GNU C library gives large blocks back at once, and a step of training spends a fifth of its time on getting the
    same pages anew. The process then stays at its peak. With another C library or on a GPU nothing changes.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, NEVER)
