"""The training loop: one optimizer step, one epoch, a whole run."""

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cotnet.engine import state as checkpoints
from cotnet.engine.distributed import Agreement, Ranks, average_buffers
from cotnet.engine.evaluation import Interrupted, Loader
from cotnet.engine.precision import Precision
from cotnet.engine.schedule import set_lr
from cotnet.engine.settings import CheckpointSettings, TrainSettings
from cotnet.engine.state import State
from cotnet.engine.window import Window
from cotnet.errors import RunError


class Reports(Protocol):
    """Where figures go, on rank 0; on the others nothing happens."""

    def epoch(self, state: State) -> None: ...
    def train(self, record: dict[str, float]) -> None: ...
    def validation(self, record: dict[str, float], state: State) -> None: ...
    def step(self) -> None: ...
    def before_save(self) -> None: ...
    def status(self, status: str, state: State) -> None: ...


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
    criterion: nn.Module
    schedule: Callable[[float], float]
    evaluate: Callable[[], dict[str, dict[str, float]]]
    reports: Reports
    stop: Callable[[], bool]
    folder: Path
    config: dict[str, Any]


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


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout and drop path of a step are a function of (seed, step, rank): a resumed run needs no generator state."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)


def optimize(run: Run, state: State, images: Tensor, targets: Tensor, indices: Tensor) -> None:
    """One optimizer step over this rank's share of the batch; its mean loss, the norm of the gradient before clipping
    and the share of hits go into the state's window, on the device."""
    seed_step(run.seed, state.step, run.ranks.rank)
    parts = run.settings.accumulation
    total, hits = torch.zeros(2, dtype=torch.float64, device=run.ranks.device)
    micro_batches = zip(images.chunk(parts), targets.chunk(parts), indices.chunk(parts), strict=True)
    for part, micro_batch in enumerate(micro_batches):
        inputs, wanted = run.transform(*micro_batch, state.epoch)
        with _gradients_kept(run.replica, keep=part < parts - 1):
            with run.precision.autocast():
                logits = run.replica(inputs)
            loss = run.criterion(logits.to(wanted.dtype if wanted.is_floating_point() else inputs.dtype), wanted)
            state.scaler.scale(loss / parts).backward()
        total += loss.detach() / parts
        hits += _hits(logits.detach(), wanted) / parts
    epoch = state.epoch + state.batch / run.steps_per_epoch
    set_lr(state.optimizer, run.schedule(epoch))
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
    return norm.double()


def _gradients_kept(replica: nn.Module, *, keep: bool) -> contextlib.AbstractContextManager[None]:
    """No reduction over ranks before an optimizer step's last micro-batch."""
    if keep and isinstance(replica, DistributedDataParallel):
        return replica.no_sync()
    return contextlib.nullcontext()


def log(run: Run, state: State, window: Window) -> None:
    """Reduce the open loss window over ranks, check it, report; collective, and a synchronisation with the device."""
    sums = run.ranks.sum(torch.stack(list(state.window.values()))) / (run.ranks.world_size * state.window_steps)
    means = dict(zip(state.window, sums.tolist(), strict=True))
    _require_finite(run, state, means["loss"], "loss")
    _require_finite(run, state, means["grad_norm"], "norm of the gradient")
    measured = window.figures(run.settings.batch_size, run.ranks)
    state.train_seconds += time.perf_counter() - window.start
    state.trained_images += len(window.laps) * run.settings.batch_size
    state.window, state.window_steps = {}, 0
    lr = run.schedule(state.epoch + (state.batch - 1) / run.steps_per_epoch)
    figures = {f"train/{name}": figure for name, figure in (means | {"lr": lr} | measured).items()}
    run.reports.train({"step": state.step, "epoch": state.epoch + state.batch / run.steps_per_epoch} | figures)
    window.reset()


def _require_finite(run: Run, state: State, loss: float, name: str) -> None:
    if math.isfinite(loss):
        return
    last = run.folder / "checkpoints" / "last.pt"
    kept = f"; {last} holds the last good state" if last.exists() else ""
    advice = "lower optimizer.lr, lengthen the warm-up or set train.clip_norm"
    raise RunError(f"the {name} is {loss} at step {state.step}{kept}: {advice}")


def save(run: Run, state: State, *, best: bool = False) -> None:
    """Write checkpoints/last.pt (and best.pt); collective."""
    checkpoint = checkpoints.pack(state, run.ranks, run.config)
    if run.ranks.first:
        folder = run.folder / "checkpoints"
        run.reports.before_save()
        checkpoints.save(folder / "last.pt", checkpoint)
        if best:
            checkpoints.duplicate(folder / "last.pt", folder / "best.pt")


def train_one_epoch(run: Run, state: State) -> None:
    """The rest of the state's epoch, or up to `max_steps`.

    Raises:
        Interrupted: a stop was requested; the state is saved.
        RunError: the loss is not finite.
    """
    agreement = Agreement(run.ranks, flags=2)
    window = Window()
    saved = time.monotonic()
    every_seconds = (run.saving.every_minutes or math.inf) * 60
    batches = run.train_loader.batches(state.epoch, state.batch) if state.batch < run.steps_per_epoch else ()
    limit = run.settings.max_steps
    batches = itertools.islice(batches, None if limit is None else max(limit - state.step, 0))
    for images, targets, indices in window.timed(batches):
        optimize(run, state, images, targets, indices)
        window.lap()
        run.reports.step()
        last = state.batch == run.steps_per_epoch or state.step == limit
        if last or state.step % run.settings.log_every == 0:
            log(run, state, window)
        stop, due = agreement.exchange(run.stop(), time.monotonic() - saved > every_seconds)
        due = due or (run.saving.every_steps is not None and state.step % run.saving.every_steps == 0)
        if (stop or due) and not last:
            _check_window(run, state)
            save(run, state)
            saved = time.monotonic()
        if stop and not last:
            raise Interrupted
    if agreement.settle()[0] or run.ranks.any(run.stop()):
        save(run, state)
        raise Interrupted


def _check_window(run: Run, state: State) -> None:
    """A loss that is not finite never reaches a kept checkpoint."""
    if state.window and run.ranks.any(not bool(torch.stack(list(state.window.values())).isfinite().all())):
        log(run, state, Window())


def finish_epoch(run: Run, state: State) -> None:
    """Average BatchNorm's statistics, evaluate raw and averaged weights, report, save.

    Raises:
        Interrupted: a stop was requested during the evaluation; the state before it is saved.
    """
    average_buffers(run.ranks, state.model, state.ema.module)
    fraction = state.epoch + state.batch / run.steps_per_epoch
    try:
        figures = run.evaluate()
    except Interrupted:
        save(run, state)
        raise
    _require_finite(run, state, figures["raw"]["loss"], "validation loss")
    record: dict[str, float] = {"step": state.step, "epoch": fraction}
    for weights, suffix in (("raw", ""), ("ema", "_ema")):
        record |= {f"val/{name}{suffix}": value for name, value in figures[weights].items()}
    weights = max(figures, key=lambda name: (figures[name]["top1"], figures[name]["top5"]))
    best = not state.best or figures[weights]["top1"] > state.best["best_top1"]
    if best:
        top1, top5 = figures[weights]["top1"], figures[weights]["top5"]
        state.best = {"best_top1": top1, "best_top5": top5, "best_epoch": fraction, "best_weights": weights}
    run.reports.validation(record, state)
    if state.batch == run.steps_per_epoch:
        state.epoch, state.batch = state.epoch + 1, 0
    save(run, state, best=best)


def fit(run: Run, state: State) -> None:
    """Train from the state to the last epoch or step.

    Raises:
        Interrupted: a stop was requested; the same command continues from checkpoints/last.pt.
    """
    state.model.train()
    run.reports.status("running", state)
    try:
        while not finished(run.settings, state.step, state.epoch):
            run.reports.epoch(state)
            train_one_epoch(run, state)
            finish_epoch(run, state)
    except Interrupted:
        run.reports.status("interrupted", state)
        raise
    except BaseException:
        run.reports.status("failed", state)
        raise
    run.reports.status("finished", state)


def finished(settings: TrainSettings, step: int, epoch: int) -> bool:
    """Whether a run of these settings has nothing left to do."""
    return epoch >= settings.epochs or (settings.max_steps is not None and step >= settings.max_steps)
