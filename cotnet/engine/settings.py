"""The typed settings of a run: each checks its own ranges, no default is stated here."""

from dataclasses import dataclass
from typing import Literal

from cotnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """`train` of the configuration. `batch_size` is global; `checkpointing` names stages whose activations are
    recomputed; `ema_decay` is the average's final decay; `max_minutes` of the whole run, over all its processes."""

    epochs: int
    batch_size: int
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32", "fp64"]
    channels_last: bool
    compile: bool
    checkpointing: tuple[Literal[1, 2, 3, 4], ...]
    recompute_norms: bool
    accumulation: int
    clip_norm: float | None
    clip_value: float | None
    loss: Literal["ce", "bce"]
    bce_threshold: float | None
    label_smoothing: float
    ema_decay: float
    sync_bn: bool
    log_every: int
    max_steps: int | None
    on_nonfinite: Literal["stop", "rollback"]
    rollback_lr_factor: float
    max_rollbacks: int
    max_minutes: float | None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "log_every", "max_steps", "max_rollbacks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 < self.rollback_lr_factor <= 1:
            raise ValueError(f"rollback_lr_factor={self.rollback_lr_factor:g} must be above 0 and at most 1")
        for name in ("clip_norm", "clip_value", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value:g} must be positive, or null")
        if self.bce_threshold is not None and not 0 <= self.bce_threshold < 1:
            raise ValueError(f"bce_threshold={self.bce_threshold:g} must be at least 0 and below 1, or null")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing:g} must be at least 0 and below 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay:g} must be at least 0 and below 1")
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError(f"clip_value={self.clip_value:g}: clip by norm or by value; set clip_norm or this to null")
        if self.compile and self.recompute_norms:
            raise ValueError(
                "recompute_norms=true: what is compiled recomputes by itself; set this or compile to false"
            )

    def check_batch(self, ranks: int, samples: int) -> None:
        """Raise InputError unless the batch fits the training set and divides into equal micro-batches."""
        if self.batch_size > samples:
            raise InputError(f"train.batch_size={self.batch_size} exceeds the {samples} training images; lower it")
        parts = ranks * self.accumulation
        if self.batch_size % parts:
            below = self.batch_size // parts * parts
            near = f"{below} or {below + parts}" if below else str(parts)
            where = f"{ranks} ranks x {self.accumulation} accumulation steps"
            raise InputError(f"train.batch_size={self.batch_size} is not divisible by {where}; use {near}")


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """`checkpoint` of the configuration: how often to save within an epoch (its end is always saved), and which
    epochs' checkpoints to keep beside the last and the best: every n-th, the best k."""

    every_steps: int | None
    every_minutes: float | None
    keep_every: int | None
    keep_top: int | None

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_minutes", "keep_every", "keep_top"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value:g} must be positive, or null")
