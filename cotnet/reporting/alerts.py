"""Warnings about a run that goes wrong without failing. They depend on its records only, so a cut changes none.

A **loss jump**: the loss of a training record is above the median of the 20 records before it (at least 5) by more than
half that median, by more than 5 times their median absolute deviation, and by more than a tenth of the run's first
loss. The next warning needs a record below the limit first.

A **dead run**: at 3 evaluations in a row the best top-1, of raw and averaged weights, is not above that of guessing
(100 % / classes) by more than half of it (at most a tenth of the way to 100 %) and 3 standard deviations of guessing on
so many images; 5 evaluations where the training accuracy is further up than a tenth of that way. Warned of once, until
one is above.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

Record = Mapping[str, Any]

WINDOW, LEAST = 20, 5
FLAT, FLAT_THOUGH_LEARNING = 3, 5


class Alerts:
    """`warnings`: `step` and `message` of each warning about the records seen so far."""

    def __init__(self, classes: int, records: Iterable[Record] = ()) -> None:
        self.warnings: list[dict[str, Any]] = []
        self._chance = 100 / classes
        self._tenth = (100 - self._chance) / 10
        self._first: float | None = None
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._above, self._told, self._flat = False, False, 0
        self._accuracy = 0.0  # of the last training record
        for record in records:
            self.see(record)

    def see(self, record: Record) -> str | None:
        """Takes the next record; returns a warning, or None."""
        found = None
        if record.get("train/loss") is not None:
            self._accuracy = record.get("train/accuracy") or 0.0
            found = self._jump(record["train/loss"])
        if record.get("val/top1") is not None:
            found = self._dead(record)
        if found is None:
            return None
        message = f"warning at step {record['step']}: {found}"
        self.warnings.append({"step": record["step"], "message": message})
        return message

    def _jump(self, loss: float) -> str | None:
        self._first = loss if self._first is None else self._first
        before, was_above = list(self._losses), self._above
        self._losses.append(loss)
        if len(before) < LEAST:
            return None
        middle = median(before)
        spread = median(abs(value - middle) for value in before)
        self._above = loss - middle > max(0.5 * middle, 5 * spread, 0.1 * self._first)
        if was_above or not self._above:
            return None
        return (
            f"the loss jumped to {loss:.4g}, from a median of {middle:.4g}; look at train/grad_norm and train/lr in "
            "report.html: where it stays up, lower optimizer.lr, lengthen the warm-up or set train.clip_norm"
        )

    def _dead(self, record: Record) -> str | None:
        top1 = max(record["val/top1"], record.get("val/top1_ema") or 0.0)
        deviation = math.sqrt(self._chance * (100 - self._chance) / record["val/images"])
        alive = top1 > self._chance + min(self._chance / 2, self._tenth) + 3 * deviation or self._chance == 100
        self._flat, self._told = (0, False) if alive else (self._flat + 1, self._told)
        learning = self._accuracy > self._chance + self._tenth
        if self._told or self._flat < (FLAT_THOUGH_LEARNING if learning else FLAT):
            return None
        self._told = True
        guess = f"top-1 is {top1:.2f} %, hardly better than guessing, at {self._flat} evaluations in a row"
        if learning:
            return (
                f"{guess}, though {self._accuracy:.1f} % of the training images are right; "
                "look at whether val/ has train/'s classes, and at data.crop_ratio, data.mean and data.std"
            )
        return (
            f"{guess}, and the training accuracy is {self._accuracy:.2f} %; look at train/lr and train/grad_norm in "
            "report.html (too high, or almost 0), and at the images and labels with python -m cotnet.browse"
        )
