"""Random and Bayesian search: Optuna proposes, its journal in the sweep's folder remembers.

The ledger decides what runs; the journal follows it, so that either may be behind after a kill.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cotnet.errors import InputError
from cotnet.sweeps.figures import best_figure
from cotnet.sweeps.ledger import Ledger, mend
from cotnet.sweeps.space import Parameter, SweepSettings, Trial, name_trials

if TYPE_CHECKING:
    import optuna

JOURNAL = "optuna.journal"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("optuna is not installed; pip install 'cotnet[sweep]' or sweep with sweep=grid") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def distribution(parameter: Parameter) -> "optuna.distributions.BaseDistribution":
    """The same set of values, as Optuna says it."""
    kinds = _optuna().distributions
    p = parameter
    if p.low is None or p.high is None or p.low >= p.high:
        return kinds.CategoricalDistribution(p.values)
    if p.integer:
        return kinds.IntDistribution(int(p.low), int(p.high), log=p.log, step=int(p.step or 1))
    return kinds.FloatDistribution(p.low, p.high, log=p.log, step=p.step)


class Search:
    """Proposes trials until there are `settings.trials`, each a pure function of the seed, its number and what is
    known by then; so a cut search goes on as it would have."""

    def __init__(self, ledger: Ledger, settings: SweepSettings, parameters: Sequence[Parameter]) -> None:
        self.ledger, self.settings, self.parameters = ledger, settings, parameters
        self.total = settings.trials or 0
        optuna = _optuna()
        path = ledger.folder / JOURNAL
        mend(path)
        for stale in path.parent.glob(f"{JOURNAL}.lock*"):  # of a killed sweep: we hold the folder
            stale.unlink()
        journal = optuna.storages.journal
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal.JournalFileBackend(str(path))),
            study_name=f"{settings.direction} {settings.target}",  # after a change of target the figures are new
            direction=settings.direction,
            load_if_exists=True,
        )
        self.distributions = {parameter.key: distribution(parameter) for parameter in parameters}
        self.pending = self._reconcile()

    def _reconcile(self) -> list[Trial]:
        """Tell the study what the ledger knows; what neither knows the end of is to run."""
        states = _optuna().trial.TrialState
        waiting = []
        for frozen in self.study.get_trials(deepcopy=False):
            if len(frozen.params) < len(self.parameters):  # a kill cut the question short
                if not frozen.state.is_finished():
                    self.study.tell(frozen.number, state=states.FAIL)
            elif not frozen.state.is_finished():
                waiting.append(self._trial(frozen.params))
        ended = [entry for entry in self.ledger.entries.values() if entry.state in ("finished", "failed")]
        for entry in ended:
            self.tell(entry.trial, failed=entry.state == "failed")
        again = ["started", "interrupted", *(["failed"] if self.settings.retry else [])]
        trials = {entry.trial.name: entry.trial for entry in self.ledger.entries.values() if entry.state in again}
        known = {entry.trial.name for entry in ended}
        return list((trials | {trial.name: trial for trial in waiting if trial.name not in known}).values())

    def next(self) -> Trial | None:
        """The next trial to run, or None when there are enough."""
        if self.pending:
            return self.pending.pop(0)
        while (number := self._asked()) < self.total:
            self.study.sampler = self._sampler(number)
            trial = self._trial(self.study.ask(self.distributions).params)
            entry = self.ledger.entries.get(trial.name)
            if entry is None:
                return trial
            if entry.state in ("finished", "failed"):  # drawn before: the same run would come to the same
                self.tell(trial, failed=entry.state == "failed")
        return None

    def names(self) -> set[str]:
        return set(self.ledger.entries)

    def tell(self, trial: Trial, *, failed: bool) -> None:
        """Give the study what a trial came to, unless it knows."""
        optuna = _optuna()
        states = optuna.trial.TrialState
        folder, settings = self.ledger.folder / trial.name, self.settings
        figure = None if failed else best_figure(folder, settings.target, settings.direction)
        value = figure[0] if figure else None
        state = states.FAIL if value is None else states.COMPLETE
        mine = [frozen for frozen in self._whole() if self._identity(frozen.params) == frozenset(trial.overrides)]
        for frozen in mine:
            if not frozen.state.is_finished():
                self.study.tell(frozen.number, value, state=state)
        known = any(frozen.state in (states.RUNNING, state) for frozen in mine)
        if not known:  # retried, or from before another target
            params = {p.key: _number(p, trial.settings[p.key]) for p in self.parameters}
            create = optuna.trial.create_trial
            self.study.add_trial(create(params=params, distributions=self.distributions, value=value, state=state))

    def _whole(self) -> list[Any]:
        trials = self.study.get_trials(deepcopy=False)
        return [frozen for frozen in trials if len(frozen.params) == len(self.parameters)]

    def _asked(self) -> int:
        """How many trials there are, a failed one that was retried counting once."""
        states = _optuna().trial.TrialState
        by_state = {state: [self._identity(t.params) for t in self._whole() if t.state == state] for state in states}
        retried = sum(identity in by_state[states.COMPLETE] for identity in by_state[states.FAIL])
        return sum(map(len, by_state.values())) - retried

    def _identity(self, params: Mapping[str, Any]) -> frozenset[str]:
        return frozenset(parameter.written(params[parameter.key]) for parameter in self.parameters)

    def _trial(self, params: Mapping[str, Any]) -> Trial:
        overrides = [parameter.written(params[parameter.key]) for parameter in self.parameters]
        return name_trials([overrides], self.ledger.trials())[0]

    def _sampler(self, number: int) -> Any:
        samplers, settings = _optuna().samplers, self.settings
        seed = int.from_bytes(hashlib.sha256(f"{settings.seed} {number}".encode()).digest()[:4])
        if settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        liar = settings.parallel > 1
        return samplers.TPESampler(seed=seed, n_startup_trials=settings.startup, multivariate=True, constant_liar=liar)


def _number(parameter: Parameter, text: str) -> Any:
    if parameter.low is None or parameter.low == parameter.high:
        return text
    return int(text) if parameter.integer else float(text)


def importances(
    trials: Sequence[Trial], values: Sequence[float], parameters: Sequence[Parameter]
) -> dict[str, float] | None:
    """Each setting's share of the target's variance (fANOVA: Hutter et al., ICML 2014), the largest first.

    None where it cannot be had: without Optuna, with fewer than four trials, or when all came to the same.
    """
    try:
        optuna = _optuna()
    except InputError:
        return None
    if len(values) < 4 or len(set(values)) == 1:
        return None
    distributions = {parameter.key: distribution(parameter) for parameter in parameters}
    study = optuna.create_study(direction="maximize")
    for trial, value in zip(trials, values, strict=True):
        params = {p.key: _number(p, trial.settings[p.key]) for p in parameters}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    except ImportError:  # it needs scikit-learn
        return None
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def observed(trials: Sequence[Trial]) -> list[Parameter]:
    """What trials of a grid tried, as parameters: the settings all of them have."""
    if not trials:
        return []
    keys = [key for key in trials[0].settings if all(key in trial.settings for trial in trials)]
    tried = {key: tuple(dict.fromkeys(trial.settings[key] for trial in trials)) for key in keys}
    return [Parameter(key=key, values=values) for key, values in tried.items() if len(values) > 1]
