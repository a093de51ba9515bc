"""The training loop: an epoch of steps, its end, a whole run."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from cotnet.engine import state as checkpoints
from cotnet.engine.distributed import Agreement, average_buffers
from cotnet.engine.evaluation import Interrupted
from cotnet.engine.guard import NotFinite, Watch
from cotnet.engine.saving import job
from cotnet.engine.settings import TrainSettings
from cotnet.engine.state import State
from cotnet.engine.step import Run, learning_rate, optimize
from cotnet.engine.window import Window
from cotnet.errors import RunError


def log(run: Run, state: State, window: Window, rate: float) -> None:
    """Reduce the open window over ranks and report it; collective, and a synchronisation with the device."""
    sums = run.ranks.sum(torch.stack(list(state.window.values()))) / (run.ranks.world_size * state.window_steps)
    means = dict(zip(state.window, sums.tolist(), strict=True))
    measured = window.figures(run.settings.batch_size, run.ranks)
    state.train_seconds += time.perf_counter() - window.start
    state.trained_images += len(window.laps) * run.settings.batch_size
    state.window, state.window_steps = {}, 0
    figures = {f"train/{name}": figure for name, figure in (means | {"lr": rate} | measured).items()}
    run.reports.train({"step": state.step, "epoch": state.epoch + state.batch / run.steps_per_epoch} | figures)
    window.reset()


def save(run: Run, state: State, *, best: bool = False) -> None:
    """Write checkpoints/last.pt (and best.pt, and what `checkpoint.keep_*` ask for) in the background; collective."""
    checkpoint = checkpoints.pack(state, run.ranks, run.config)
    if run.ranks.first:
        folder = run.folder / "checkpoints"
        before = run.reports.before_save
        run.background.start(job(folder, checkpoint, run.saving, state, best=best, before=before))


def train_one_epoch(run: Run, state: State) -> None:
    """The rest of the state's epoch, or up to `max_steps` or `max_minutes`.

    Raises:
        Interrupted: a stop was requested; the state is saved.
        NotFinite: a step's loss or gradient is not finite.
    """
    agreement = Agreement(run.ranks, flags=3)
    watch, window = Watch(), Window()
    saved = time.monotonic()
    every_seconds = (run.saving.every_minutes or math.inf) * 60
    limit = run.settings.max_steps
    ended = run.ranks.any(_at_end(run, state))
    batches = () if ended else run.train_loader.batches(state.epoch, state.batch)
    for images, targets, indices in window.timed(batches):
        rate = learning_rate(run, state)
        if [state.epoch, state.batch] in state.skipped:
            state.batch += 1
        else:
            watch.steps.append(optimize(run, state, images, targets, indices))
        window.lap()
        run.reports.step()
        last = state.batch == run.steps_per_epoch or state.step == limit
        late = over(run.settings.max_minutes, state.tick() / 60)
        stop, due, late = agreement.exchange(run.stop(), time.monotonic() - saved > every_seconds, late)
        if late:  # on some rank: from here on, and in the checkpoint, the time is up on every rank
            state.seconds = max(state.seconds, 60 * (run.settings.max_minutes or 0.0))
        due = due or (run.saving.every_steps is not None and state.step % run.saving.every_steps == 0)
        logged = last or late or state.step % run.settings.log_every == 0
        if logged or stop or due:
            watch.check(run.ranks, state, files=run.files, seed=run.seed, folder=run.folder)
        if logged and state.window_steps:
            log(run, state, window, rate)
        if (stop or due) and not last:
            save(run, state)
            saved = time.monotonic()
        if stop and not last:
            raise Interrupted
        run.background.check()
        if last or late:
            break
    if agreement.settle()[0] or run.ranks.any(run.stop()):
        save(run, state)
        raise Interrupted


def _at_end(run: Run, state: State) -> bool:
    """Whether only an evaluation is left: of the epoch, or of a run that was cut in its last one."""
    time_is_up = state.step > 0 and over(run.settings.max_minutes, state.seconds / 60)
    return state.batch >= run.steps_per_epoch or over(run.settings.max_steps, state.step) or time_is_up


def finish_epoch(run: Run, state: State) -> None:
    """Average BatchNorm's statistics, evaluate raw and averaged weights, report, save.

    Raises:
        Interrupted: a stop was requested during the evaluation; the state before it is saved.
        NotFinite: the validation loss is not finite.
    """
    average_buffers(run.ranks, state.model, state.ema.module)
    done = state.epoch + state.batch / run.steps_per_epoch
    try:
        figures = run.evaluate()
    except Interrupted:
        save(run, state)
        raise
    if not math.isfinite(figures["raw"]["loss"]):
        raise NotFinite(f"the validation loss is not finite at step {state.step}")
    record: dict[str, float] = {"step": state.step, "epoch": done}
    for weights, suffix in (("raw", ""), ("ema", "_ema")):
        record |= {f"val/{name}{suffix}": value for name, value in figures[weights].items()}
    weights = max(figures, key=lambda name: (figures[name]["top1"], figures[name]["top5"]))
    top1, top5 = figures[weights]["top1"], figures[weights]["top5"]
    best = not state.best or top1 > state.best["best_top1"]
    if best:
        state.best = {"best_top1": top1, "best_top5": top5, "best_epoch": done, "best_weights": weights}
    state.history.append([done, top1])
    run.reports.validation(record, state)
    state.evaluated = state.step
    if state.batch == run.steps_per_epoch:
        state.epoch, state.batch = state.epoch + 1, 0
    save(run, state, best=best)


def roll_back(run: Run, state: State, bad: NotFinite) -> None:
    """Return to the last good checkpoint, leave out the bad batch on the way, go on at a lower learning rate;
    collective.

    Raises:
        RunError: the policy is to stop, or enough was rolled back.
    """
    run.background.wait()
    settings, last = run.settings, run.folder / "checkpoints" / "last.pt"
    if settings.on_nonfinite == "stop" or state.rollbacks >= settings.max_rollbacks:
        tried = f", after {state.rollbacks} rollbacks" if state.rollbacks else ""
        kept = f"; {last} holds the last good state" if last.exists() else ""
        advice = "lower optimizer.lr, lengthen the warm-up or set train.clip_norm"
        raise RunError(f"{bad}{tried}{kept}: {advice}")
    decided = {
        "skipped": state.skipped + ([] if bad.batch is None else [list(bad.batch)]),
        "lr_factor": state.lr_factor * settings.rollback_lr_factor,
        "rollbacks": state.rollbacks + 1,
        "seconds": state.tick(),
    }
    run.ranks.any(False)  # the file is whole: rank 0 has waited for its writer  # noqa: FBT003
    checkpoints.restore(state, checkpoints.load(last), run.ranks, last)
    vars(state).update(decided)
    without = "" if bad.batch is None else ", without that batch"
    run.reports.rolled_back(state, f"{bad}: back to step {state.step}{without}, rates times {state.lr_factor:g}")
    save(run, state)


def fit(run: Run, state: State) -> None:
    """Train from the state to the last epoch or step.

    Raises:
        Interrupted: a stop was requested; the same command continues from checkpoints/last.pt.
    """
    state.model.train()
    run.reports.status("running", state)
    try:
        if state.step == 0 and run.settings.on_nonfinite == "rollback":
            save(run, state)  # a state to roll back to
        while not run.ranks.any(finished(run.settings, vars(state))):
            run.reports.epoch(state)
            try:
                train_one_epoch(run, state)
                finish_epoch(run, state)
            except NotFinite as bad:
                roll_back(run, state, bad)
        run.background.wait()
    except Interrupted:
        run.background.wait()
        run.reports.status("interrupted", state)
        raise
    except BaseException:
        run.reports.status("failed", state)
        raise
    finally:
        run.background.close()
    run.reports.status("finished", state)


def finished(settings: TrainSettings, progress: Mapping[str, Any]) -> bool:
    """Whether a run of these settings has nothing left to do; `progress` is a state's or a checkpoint's."""
    stopped = over(settings.max_steps, progress["step"]) or over(settings.max_minutes, progress["seconds"] / 60)
    return (stopped and progress["evaluated"] == progress["step"]) or progress["epoch"] >= settings.epochs


def over(limit: float | None, reached: float) -> bool:
    """Whether a limit, if there is one, is reached."""
    return limit is not None and reached >= limit
