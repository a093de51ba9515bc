"""What a training run is made of on one rank, and one optimizer step of it."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import Loader
from cotnet.engine.guard import Step
from cotnet.engine.losses import Criterion
from cotnet.engine.precision import Precision
from cotnet.engine.recomputation import norms_recomputed
from cotnet.engine.saving import Background
from cotnet.engine.schedule import set_lr
from cotnet.engine.settings import CheckpointSettings, TrainSettings
from cotnet.engine.state import State
from cotnet.errors import InputError


class Reports:
    """Where figures go on rank 0, a context as long as the run; as it is here, nowhere: on the other ranks."""

    def epoch(self, state: State) -> None:
        """An epoch begins, or the rest of one."""

    def train(self, record: dict[str, float]) -> None:
        """The figures of a window of steps."""

    def validation(self, record: dict[str, float], state: State) -> None:
        """The figures of an evaluation."""

    def step(self) -> None:
        """A step has ended."""

    def before_save(self) -> None:
        """A checkpoint is about to be taken, which will know of the figures so far."""

    def rolled_back(self, state: State, line: str) -> None:
        """The run stands at an earlier step again; the line says why."""

    def status(self, status: str, state: State) -> None:
        """How the run stands: running, finished, ..."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """The constant parts of a training run on one rank."""

    ranks: Ranks
    settings: TrainSettings
    saving: CheckpointSettings
    precision: Precision
    seed: int
    replica: nn.Module  # the model, wrapped when there are several ranks
    train_loader: Loader
    steps_per_epoch: int
    transform: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    criterion: Criterion
    schedule: Callable[[float], float]
    evaluate: Callable[[], dict[str, dict[str, float]]]
    reports: Reports
    stop: Callable[[], bool]
    folder: Path
    config: dict[str, Any]
    files: Sequence[str]  # of the training set, by sample index
    background: Background = field(default_factory=Background)


def wrap(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The replica whose backward pass averages gradients over ranks; the model itself on one rank."""
    if ranks.world_size == 1:
        return model
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    with warnings.catch_warnings():
        # The name that replaces broadcast_buffers would copy rank 0's buffers to the others at the start: a run that
        # continues in mid-epoch has other BatchNorm statistics on each rank.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def settle_buckets(run: Run, state: State, image_size: int) -> None:
    """Take one forward and backward pass on zeros and throw its gradients away; collective.

    DDP sums gradients in buckets, and rebuilds them after the first backward pass of a process. Without this pass the
    first step of a continued run would add in another order than the same step of a run never cut, which shows on three
    or more ranks. BatchNorm's statistics are kept; a step draws its own random numbers (`seed_step`).
    """
    if run.ranks.world_size == 1:
        return
    buffers = {buffer: buffer.clone() for buffer in state.model.buffers()}
    count = run.settings.batch_size // run.ranks.world_size // run.settings.accumulation
    zeros = torch.zeros(count, 3, image_size, image_size, device=run.ranks.device, dtype=run.precision.parameters)
    state.model.train()
    forward(run, zeros).sum().backward()
    state.optimizer.zero_grad(set_to_none=True)
    for buffer, kept in buffers.items():
        buffer.copy_(kept)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout and drop path of a step are a function of (seed, step, rank): a resumed run needs no generator state.

    Modulo 2^64, the largest seed that torch takes. The factors are odd, so two seeds never become one.
    """
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**64)


def forward(run: Run, images: Tensor) -> Tensor:
    """The logits (B, classes) of normalised images (B, 3, H, W), in the run's precision and memory format."""
    recomputed = norms_recomputed(enabled=run.settings.recompute_norms)
    with recomputed, run.precision.autocast(), _one_image_named(len(images)):
        logits: Tensor = run.replica(images.to(memory_format=run.precision.layout))
    return logits


def optimize(run: Run, state: State, images: Tensor, targets: Tensor, indices: Tensor) -> Step:
    """One optimizer step over this rank's share of the batch; its mean loss, the norm of the gradient before clipping
    and the share of hits go into the state's window, on the device."""
    seed_step(run.seed, state.step, run.ranks.rank)
    parts = run.settings.accumulation
    total, hits = torch.zeros(2, dtype=torch.float64, device=run.ranks.device)
    micro_batches = zip(images.chunk(parts), targets.chunk(parts), indices.chunk(parts), strict=True)
    for part, micro_batch in enumerate(micro_batches):
        inputs, wanted = run.transform(*micro_batch, state.epoch)
        with _gradients_kept(run.replica, keep=part < parts - 1):
            logits = forward(run, inputs)
            loss = run.criterion(logits.to(wanted.dtype if wanted.is_floating_point() else inputs.dtype), wanted)
            state.scaler.scale(loss / parts).backward()
        total += loss.detach() / parts
        hits += _hits(logits.detach(), wanted) / parts
    rate = learning_rate(run, state)
    set_lr(state.optimizer, rate)
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.model, run.settings)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update()
    if state.scaler.is_enabled():  # which leaves out a step whose gradients overflow, and lowers its scale
        norm = norm.nan_to_num(nan=0.0, posinf=0.0)
    state.count(loss=total, accuracy=hits, grad_norm=norm)
    state.window_steps += 1
    state.step += 1
    state.batch += 1
    return Step(state.step, state.epoch, state.batch - 1, rate, indices, total, norm)


@contextlib.contextmanager
def _one_image_named(images: int) -> Iterator[None]:
    """Batch norm over a pooled map takes no statistics from one image: the user's batch size, not a bug."""
    try:
        yield
    except ValueError as error:
        if images > 1 or "value per channel" not in str(error):
            raise
        raise InputError(
            "train.batch_size leaves one image to a rank and micro-batch, of which a batch norm here cannot "
            "take statistics; give each at least 2"
        ) from error


def learning_rate(run: Run, state: State) -> float:
    """The rate of the step that begins at this state."""
    return run.schedule(state.epoch + state.batch / run.steps_per_epoch) * state.lr_factor


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Percent of the images whose largest logit is that of their class, of their heaviest one where they are mixed."""
    classes = targets.argmax(1) if targets.is_floating_point() else targets
    return 100 * (logits.argmax(1) == classes).double().mean()


def clip_gradients(model: nn.Module, settings: TrainSettings) -> Tensor:
    """Clip as the settings say; the gradient's norm over all parameters before that."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if settings.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
    if settings.clip_value is not None:
        nn.utils.clip_grad_value_(parameters, settings.clip_value)
    return norm.double()


def _gradients_kept(replica: nn.Module, *, keep: bool) -> contextlib.AbstractContextManager[None]:
    """No reduction over ranks before an optimizer step's last micro-batch."""
    if keep and isinstance(replica, DistributedDataParallel):
        return replica.no_sync()
    return contextlib.nullcontext()
