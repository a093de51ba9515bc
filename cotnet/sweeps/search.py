"""Random and Bayesian search: Optuna proposes settings from what the ledger holds."""

import hashlib
import warnings
from typing import TYPE_CHECKING, Any

from cotnet.errors import InputError
from cotnet.reporting.terminal import say
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.results import best_figure
from cotnet.sweeps.space import Parameter, SweepPlan, SweepSettings, Trial, name_trials

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 1000  # to draw settings that were not tried before
MODEL_ATTEMPTS = 10  # of these from the model; the rest are random


def propose(plan: SweepPlan, ledger: Ledger) -> Trial | None:
    """The next trial of a search; None if there are enough, or if the space seems to hold no other. It depends on the
    seed, the number of trials so far and their results only: a search that was cut proposes what an uncut one does.
    Raises InputError if Optuna is not installed."""
    if len(ledger.entries) >= plan.total:
        return None
    optuna = _optuna()
    distributions = {parameter.key: distribution(parameter) for parameter in plan.parameters}
    study = optuna.create_study(direction=plan.settings.direction)
    for entry in ledger.entries.values():
        figure = best_figure(ledger, entry.trial) if entry.state == "finished" else ()
        if figure or entry.state in ("started", "interrupted"):  # samplers ignore a trial that ended without a value
            params = {p.key: p.parsed(entry.trial.settings[p.key]) for p in plan.parameters}
            kinds = optuna.trial.TrialState
            about = {"state": kinds.COMPLETE, "value": figure[0]} if figure else {"state": kinds.RUNNING}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, **about))
    for attempt in range(ATTEMPTS):
        study.sampler = _sampler(plan.settings, len(ledger.entries), attempt)
        params = study.ask(distributions).params
        overrides = [parameter.override(params[parameter.key]) for parameter in plan.parameters]
        (trial,) = name_trials([overrides], ledger.trials())
        if trial.name not in ledger.entries:
            return trial
    say(f"no other settings were found in this space; the search ends after {len(ledger.entries)} trials")
    return None


def distribution(parameter: Parameter) -> "optuna.distributions.BaseDistribution":
    """The same set of values, as Optuna writes it."""
    kinds, p = _optuna().distributions, parameter
    if p.low is None or p.high is None or p.low == p.high:
        return kinds.CategoricalDistribution(p.values)
    if p.integer:
        return kinds.IntDistribution(int(p.low), int(p.high), log=p.log, step=int(p.step or 1))
    return kinds.FloatDistribution(p.low, p.high, log=p.log, step=p.step)


def _sampler(settings: SweepSettings, number: int, attempt: int) -> Any:
    words = f"{settings.seed} {number}" + (f" {attempt}" if attempt else "")
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4])
    samplers = _optuna().samplers
    if settings.sampler == "random" or attempt >= MODEL_ATTEMPTS:
        return samplers.RandomSampler(seed=seed)
    liar = settings.parallel > 1  # trials that run count as bad ones, so that the next one differs from them
    return samplers.TPESampler(seed=seed, n_startup_trials=settings.startup, multivariate=True, constant_liar=liar)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("optuna is not installed; pip install 'cotnet[sweep]' or sweep with sweep=grid") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
