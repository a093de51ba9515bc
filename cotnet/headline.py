"""The figures of an evaluation that people look at first, all in percent, with the words for them."""

from collections.abc import Container
from typing import Final

# figure -> what people call it, in the order of importance within a task
NAMES: Final = {
    "top1": "top-1",
    "top5": "top-5",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
    "box_ap50": "box AP50",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
}
CLASSIFICATION: Final = ("top1", "top5")
SEGMENTATION: Final = ("miou", "pixel_accuracy")
BOXES: Final = ("box_ap", "box_ap50")
MASKS: Final = ("box_ap", "mask_ap")
RANKINGS: Final = (CLASSIFICATION, SEGMENTATION, MASKS, BOXES)


def ranking_of(keys: Container[str], prefix: str = "") -> tuple[str, str]:
    """The two figures by which an evaluation is ranked, from the keys of a record (`prefix`: `val/`, `best_`); those of
    classification if none is known."""
    return next((pair for pair in RANKINGS if all(prefix + name in keys for name in pair)), CLASSIFICATION)
