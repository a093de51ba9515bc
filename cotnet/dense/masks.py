"""COCO's masks, polygons or run lengths, drawn by faster-coco-eval."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from cotnet.errors import InputError


def coco_tools() -> ModuleType:
    """The package faster_coco_eval. Raises InputError without the extra `dense`."""
    try:
        import faster_coco_eval
    except ImportError:
        raise InputError("faster-coco-eval is not installed; pip install 'cotnet[dense]'") from None
    return faster_coco_eval


def drawn(outline: list[Any] | dict[str, Any], size: Sequence[int]) -> np.ndarray:
    """(h, w) uint8, 0 or 1, of polygons or run lengths in an image of this size (h, w).

    Raises InputError without the extra `dense`, and what faster-coco-eval raises for an outline that cannot be drawn.
    """
    tools = coco_tools().mask
    packed = isinstance(outline, dict) and not isinstance(outline["counts"], list)
    runs = outline if packed else tools.frPyObjects(outline, *size)
    return tools.decode(tools.merge(runs) if isinstance(runs, list) else runs)
