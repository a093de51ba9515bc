"""The training loop: an epoch of steps, what happens after each, the end of an epoch, a whole run."""

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from cotnet.engine.checkpoints import kept_epochs, snapshot, write
from cotnet.engine.distributed import Agreement, average_buffers
from cotnet.engine.evaluation import Interrupted
from cotnet.engine.nonfinite import NonFiniteCheck, NotFinite
from cotnet.engine.state import State, pack, progress, restore
from cotnet.engine.step import TrainContext, learning_rate, train_step
from cotnet.engine.step_timer import StepTimer
from cotnet.errors import RunError
from cotnet.settings import TrainSettings


def train_one_epoch(context: TrainContext, state: State) -> None:
    """Trains the rest of the epoch, or up to `max_steps` or `max_minutes`. Raises Interrupted, with the state saved, if
    a stop was requested, and NotFinite if a loss or gradient is not finite."""
    decider, nonfinite, timer = Decider(context), NonFiniteCheck(), StepTimer()
    trained = context.ranks.any(_only_evaluation_left(context, state))
    batches = () if trained else context.data.loader.batches(state.epoch, state.batch_in_epoch)
    for images, targets, indices in timer.timed(batches):
        lr = learning_rate(context, state)
        if [state.epoch, state.batch_in_epoch] in state.skipped:
            state.batch_in_epoch += 1
        else:
            nonfinite.steps.append(train_step(context, state, images, targets, indices))
        timer.step_done()
        context.output.reports.step()
        after = decider.after_step(state)
        if after.check:
            files, folder = context.data.files, context.output.folder
            nonfinite.check(context.ranks, state, files=files, seed=context.seed, folder=folder)
        if after.log and state.window_steps:
            log(context, state, timer, lr)
        if after.save:
            save(context, state)
            decider.saved()
        if after.interrupt:
            raise Interrupted
        context.output.background.check()
        if after.end:
            break
    if decider.interrupted():
        save(context, state)
        raise Interrupted


class AfterStep(NamedTuple):
    """What happens after a step, in this order; the same on every rank."""

    check: bool  # look for values that are not finite
    log: bool
    save: bool
    interrupt: bool
    end: bool  # an evaluation follows


class Decider:
    """Decides what happens after each step, the same on every rank (see `Agreement`)."""

    def __init__(self, context: TrainContext) -> None:
        self.context = context
        self.agreement = Agreement(context.ranks, flags=3)
        self.last_save, self.stale_flag = time.monotonic(), False

    def saved(self) -> None:
        """Restarts the clock of `checkpoint.every_minutes`."""
        self.last_save, self.stale_flag = time.monotonic(), self.context.ranks.world_size > 1

    def after_step(self, state: State) -> AfterStep:
        """The decision after the step that the state has just completed; called once per step."""
        settings, saving = self.context.settings, self.context.output.saving
        last = state.batch_in_epoch == self.context.data.steps_per_epoch or state.step == settings.max_steps
        late = over(settings.max_minutes, state.tick() / 60)
        due = over(saving.every_minutes, (time.monotonic() - self.last_save) / 60)
        stop, due, late = self.agreement.exchange(self.context.stop_requested(), due, late)
        if late:  # on some rank: time is up on every rank from here on, and in the checkpoint
            state.seconds = max(state.seconds, 60 * (settings.max_minutes or 0.0))
        due = due and not self.stale_flag  # ranks read the flag that the step sent before it saved
        self.stale_flag = False
        due = due or (saving.every_steps is not None and state.step % saving.every_steps == 0)
        log = last or late or state.step % settings.log_every == 0
        save = (stop or due) and not last  # the last step is saved after its evaluation
        return AfterStep(check=log or save, log=log, save=save, interrupt=stop and not last, end=last or late)

    def interrupted(self) -> bool:
        """Whether a stop was requested on any rank by now."""
        return self.agreement.settle()[0] or self.context.ranks.any(self.context.stop_requested())


def _only_evaluation_left(context: TrainContext, state: State) -> bool:
    """Whether no step is left before the evaluation: the run was cut there."""
    evaluated = state.last_eval_step == state.step  # a continued run takes at least one step
    time_is_up = state.step > 0 and not evaluated and over(context.settings.max_minutes, state.seconds / 60)
    epoch_done = state.batch_in_epoch >= context.data.steps_per_epoch
    return epoch_done or over(context.settings.max_steps, state.step) or time_is_up


def log(context: TrainContext, state: State, timer: StepTimer, lr: float) -> None:
    """Averages the open window over ranks and reports it; collective, synchronises with the device."""
    sums = context.ranks.sum(torch.stack(list(state.window.values())))
    means = dict(zip(state.window, (sums / (context.ranks.world_size * state.window_steps)).tolist(), strict=True))
    measured = timer.figures(context.settings.batch_size, context.ranks)
    state.train_seconds += time.perf_counter() - timer.start
    state.trained_images += len(timer.step_seconds) * context.settings.batch_size
    state.window, state.window_steps = {}, 0
    figures = {f"train/{name}": figure for name, figure in (means | {"lr": lr} | measured).items()}
    epoch = state.epoch + state.batch_in_epoch / context.data.steps_per_epoch
    context.output.reports.train({"step": state.step, "epoch": epoch} | figures)
    timer.reset()


def save(context: TrainContext, state: State, *, best: bool = False) -> None:
    """Writes last.pt, and best.pt and epoch_NNNN.pt if due, in the background; collective."""
    output = context.output
    checkpoint = pack(state, context.ranks, output.config)
    if not context.ranks.first:
        return
    files = {epoch: f"epoch_{epoch:04d}.pt" for epoch in kept_epochs(output.saving, state.history, state.epoch)}
    also = {files[state.epoch]} if state.batch_in_epoch == 0 and state.epoch in files else set()
    given = {"also": also | ({"best.pt"} if best else set()), "keep": set(files.values())}
    folder, copied = output.folder / "checkpoints", snapshot(checkpoint)  # training changes the original
    output.background.start(partial(write, folder, copied, before=output.reports.before_save, **given))


def finish_epoch(context: TrainContext, state: State) -> None:
    """Averages BatchNorm statistics over ranks, evaluates raw and averaged weights if due, reports and saves. Raises
    Interrupted, with the state before the evaluation saved, and NotFinite if the validation loss is not finite."""
    average_buffers(context.ranks, state.model, state.ema.module)
    done = state.epoch + state.batch_in_epoch / context.data.steps_per_epoch
    last = _is_last(context, state)
    if not last and done % context.evaluate_every:
        state.epoch, state.batch_in_epoch = state.epoch + 1, 0
        save(context, state)
        return
    try:
        figures = context.evaluate(done=done, last=last)
        figures.setdefault("ema", figures["raw"])  # without averaging they are the same weights
    except Interrupted:
        save(context, state)
        raise
    if not math.isfinite(figures["raw"].get("loss", 0.0)):
        raise NotFinite(f"the validation loss is not finite at step {state.step}")
    record: dict[str, float] = {"step": state.step, "epoch": done}
    for weights, suffix in (("raw", ""), ("ema", "_ema")):
        record |= {f"val/{name}{suffix}": value for name, value in figures[weights].items()}
    first, second = context.ranking
    weights = max(figures, key=lambda name: (figures[name][first], figures[name][second]))
    best = figures[weights][first] > state.best.get(f"best_{first}", -math.inf)
    if best:
        values = {f"best_{name}": figures[weights][name] for name in context.ranking}
        state.best = {**values, "best_epoch": done, "best_weights": weights}
    state.history.append([done, figures[weights][first]])
    context.output.reports.validation(record, state)
    state.last_eval_step = state.step
    if state.batch_in_epoch == context.data.steps_per_epoch:
        state.epoch, state.batch_in_epoch = state.epoch + 1, 0
    save(context, state, best=best)


def _is_last(context: TrainContext, state: State) -> bool:
    """Whether the run ends with the evaluation that follows; collective, because clocks differ."""
    settings = context.settings
    whole = state.batch_in_epoch == context.data.steps_per_epoch
    over_limit = over(settings.max_steps, state.step) or over(settings.max_minutes, state.seconds / 60)
    return context.ranks.any(not whole or over_limit or state.epoch + 1 >= settings.epochs)


def roll_back(context: TrainContext, state: State, bad: NotFinite) -> None:
    """Goes back to the last checkpoint; skips the bad batch and lowers the learning rate from there on; collective.
    Raises RunError if the policy is to stop, or enough was rolled back."""
    context.output.background.wait()
    settings, last = context.settings, context.output.folder / "checkpoints" / "last.pt"
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
    context.ranks.any(False)  # the file is whole: rank 0 has waited for its writer  # noqa: FBT003
    restore(state, last, context.ranks)
    vars(state).update(decided)
    without = "" if bad.batch is None else ", without that batch"
    line = f"{bad}: back to step {state.step}{without}, rates times {state.lr_factor:g}"
    context.output.reports.rolled_back(state, line)
    save(context, state)


def fit(context: TrainContext, state: State) -> None:
    """Trains from the state to the last epoch or step. Raises Interrupted if a stop was requested; the same command
    continues from checkpoints/last.pt."""
    state.model.train()
    reports, background = context.output.reports, context.output.background
    done = context.ranks.any(finished(context.settings, progress(state)))  # by the checkpoint: start-up counts later
    reports.status("running", state)
    try:
        if state.step == 0 and context.settings.on_nonfinite == "rollback":
            save(context, state)  # a state to roll back to
        while not done:
            reports.epoch(state)
            try:
                train_one_epoch(context, state)
                finish_epoch(context, state)
            except NotFinite as bad:
                roll_back(context, state, bad)
            done = context.ranks.any(finished(context.settings, progress(state)))
        background.wait()
    except BaseException as error:
        if interrupted := isinstance(error, Interrupted):
            background.wait()
        reports.status("interrupted" if interrupted else "failed", state)
        raise
    finally:
        background.close()
    reports.status("finished", state)


def finished(settings: TrainSettings, progress: Mapping[str, Any]) -> bool:
    """Whether a run with these settings has nothing left to do; `progress` as in a checkpoint."""
    stopped = over(settings.max_steps, progress["step"]) or over(settings.max_minutes, progress["seconds"] / 60)
    return (stopped and progress["evaluated"] == progress["step"]) or progress["epoch"] >= settings.epochs


def over(limit: float | None, reached: float) -> bool:
    """Whether a limit, if there is one, is reached."""
    return limit is not None and reached >= limit
