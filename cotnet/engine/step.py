"""The parts of a training run on one rank, and one optimizer step."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cotnet.engine.checkpoints import Background
from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import Loader
from cotnet.engine.losses import Criterion
from cotnet.engine.nonfinite import StepRecord
from cotnet.engine.precision import Precision
from cotnet.engine.schedule import set_lr
from cotnet.engine.state import State
from cotnet.errors import InputError
from cotnet.headline import CLASSIFICATION
from cotnet.settings import CheckpointSettings, TrainSettings

CUDA_GRAPHS: Final = ("reduce-overhead", "max-autotune")  # modes of torch.compile whose results lie in a graph's memory
# (model, images, targets) -> the loss to minimise, and figures to log: scalars on the device.
Objective = Callable[[nn.Module, Any, Any], tuple[Tensor, dict[str, Tensor]]]


class Reports:
    """What the loop reports. This class does nothing, for ranks above 0; rank 0 uses RunReports."""

    def epoch(self, state: State) -> None: ...  # begins or continues
    def step(self) -> None: ...  # has ended
    def gradients(self, state: State) -> None: ...  # of the step that ends: of all ranks, clipped, not yet dropped
    def train(self, record: dict[str, float]) -> None: ...  # averages over the steps since the last log line
    def validation(self, record: dict[str, float], state: State) -> None: ...  # results of an evaluation
    def before_save(self) -> None: ...  # records up to now must reach the disk before a checkpoint
    def rolled_back(self, state: State, line: str) -> None: ...  # to an earlier step; the line says why
    def status(self, status: str, state: State) -> None: ...  # running, interrupted, failed or finished

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """This rank's training images. `transform` makes of (images, targets, indices, epoch) normalised images and
    targets; `files` are the training set's paths by sample index."""

    loader: Loader
    steps_per_epoch: int
    transform: Callable[[Any, Any, Tensor, int], tuple[Any, Any]]
    files: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Output:
    """Run folder, configuration as JSON, save settings, reports, and the writer in the background."""

    folder: Path
    config: str  # JSON, for the checkpoints
    saving: CheckpointSettings
    reports: Reports
    background: Background = field(default_factory=Background)


@dataclass(frozen=True, kw_only=True)
class TrainContext:
    """The constant parts of a training run on one rank. `ddp_model`: the model, wrapped by DDP on several ranks;
    `schedule`: the learning rate of a fractional epoch; `ranking`: the two validation figures, the more important one
    first, by which weights are the best."""

    ranks: Ranks
    settings: TrainSettings
    seed: int
    precision: Precision
    ddp_model: nn.Module
    objective: Objective
    schedule: Callable[[float], float]
    data: TrainData
    output: Output
    evaluate: Callable[..., dict[str, dict[str, float]]]  # (done: epochs, last: at the end) -> figures by weights
    evaluate_every: int  # epochs
    stop_requested: Callable[[], bool]
    ranking: tuple[str, str] = CLASSIFICATION


def wrap(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model, wrapped so that its backward pass averages gradients over ranks; itself on one rank."""
    if ranks.world_size == 1:
        return model
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    with warnings.catch_warnings():
        # The option that replaces broadcast_buffers copies rank 0's buffers to all ranks at the start. A run that
        # continues within an epoch has different BatchNorm statistics on each rank.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def trial_pass(state: State, loss: Callable[[], Tensor]) -> None:
    """A forward and backward pass, of a loss that runs the state's model in training mode, that leaves no trace, not
    even if it fails: gradients are dropped, BatchNorm statistics restored; each step seeds its own random numbers
    (`seed_step`)."""
    buffers = {buffer: buffer.clone() for buffer in state.model.buffers()}
    state.model.train()
    try:
        loss().backward()
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        for buffer, kept in buffers.items():
            buffer.copy_(kept)


def pass_on_zeros(model: nn.Module, state: State, precision: Precision, *, images: int, size: int) -> None:
    """A `trial_pass` of `model`, which runs the state's model, on (images, 3, size, size) zeros."""
    zeros = torch.zeros(images, 3, size, size, device=precision.device, dtype=precision.parameters)
    trial_pass(state, lambda: forward(model, zeros, precision).sum())


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds dropout and drop path from (seed, step, rank), so that a resumed run needs no generator state. Modulo 2^64,
    torch's largest seed; the factors are odd, so different seeds stay different."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**64)


def forward(model: nn.Module, images: Tensor, precision: Precision) -> Tensor:
    """The logits (B, classes) of normalised images (B, 3, H, W), in the run's precision and memory format. Raises
    InputError about the batch size where BatchNorm, over a pooled map, gets one image."""
    try:
        with precision.autocast():
            return cast(Tensor, model(images.to(memory_format=precision.layout)))
    except ValueError as error:
        if len(images) > 1 or "value per channel" not in str(error):
            raise
        reason = "of which a batch norm here cannot take statistics; give each at least 2"
        raise InputError(f"train.batch_size leaves one image to a rank and micro-batch, {reason}") from error


def classification(criterion: Criterion, precision: Precision) -> Objective:
    """The objective of a classifier: the criterion of its logits; logs training top-1 as `accuracy`."""

    def objective(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = forward(model, images, precision)
        loss = criterion(logits.to(targets.dtype if targets.is_floating_point() else images.dtype), targets)
        return loss, {"accuracy": _hits(logits.detach(), targets)}

    return objective


def train_step(context: TrainContext, state: State, images: Any, targets: Any, indices: Tensor) -> StepRecord:
    """One optimizer step on this rank's share of the batch: B uint8 images, B targets, and indices (B,), as the loader
    gives them. Adds loss, the objective's figures and the gradient norm (before clipping) to the state's open window,
    on the device."""
    seed_step(context.seed, state.step, context.ranks.rank)
    parts = context.settings.accumulation
    ddp = context.ddp_model if isinstance(context.ddp_model, DistributedDataParallel) else None
    sums: dict[str, Tensor] = {}
    for part, taken in enumerate(_equal_slices(len(indices), parts)):
        inputs, wanted = context.data.transform(images[taken], targets[taken], indices[taken], state.epoch)
        with ddp.no_sync() if ddp and part < parts - 1 else contextlib.nullcontext():
            loss, figures = context.objective(context.ddp_model, inputs, wanted)
            state.scaler.scale(loss / parts).backward()
        if part == 0 and parts > 1 and context.settings.compile in CUDA_GRAPHS:
            own_gradients(state.model)
        for name, figure in {"loss": loss, **figures}.items():
            share = (figure.detach() / parts).double()
            sums[name] = sums[name] + share if part else share
    lr = learning_rate(context, state)
    set_lr(state.optimizer, lr)
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.model, context.settings)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    context.output.reports.gradients(state)
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update()
    if state.scaler.is_enabled():  # the scaler skips a step whose gradients overflow, and lowers its scale
        norm = norm.nan_to_num(nan=0.0, posinf=0.0)
    state.count(**sums, grad_norm=norm)
    state.window_steps += 1
    state.step += 1
    state.batch_in_epoch += 1
    return StepRecord(state.step, state.epoch, state.batch_in_epoch - 1, lr, indices, sums["loss"], norm)


def own_gradients(model: nn.Module) -> None:
    """Moves the gradients to memory of their own. A CUDA graph writes those of the next micro-batch over them, and the
    sum of both would be twice the last."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def _equal_slices(length: int, parts: int) -> list[slice]:
    size = length // parts
    return [slice(part * size, (part + 1) * size) for part in range(parts)]


def learning_rate(context: TrainContext, state: State) -> float:
    """The learning rate of the next step."""
    return context.schedule(state.epoch + state.batch_in_epoch / context.data.steps_per_epoch) * state.lr_factor


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Training top-1 in percent; the target of a mixed image is its heaviest class."""
    classes = targets.argmax(1) if targets.is_floating_point() else targets
    return 100 * (logits.argmax(1) == classes).double().mean()


def clip_gradients(model: nn.Module, settings: TrainSettings) -> Tensor:
    """Clips the gradients in place; returns their norm over all parameters before clipping."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])
    if settings.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
    if settings.clip_value is not None:
        nn.utils.clip_grad_value_(parameters, settings.clip_value)
    return norm.double()
