"""Searches on sweeps written by hand: what is proposed, after a cut too, and in a folder of the version before."""

import optuna
import pytest

from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.run import trials_left
from cotnet.sweeps.search import distribution, propose
from cotnet.sweeps.space import Parameter, read

from .by_hand import IDENTITY, begin, finish, plan

SPACE = ["lr=tag(log,interval(0.01,1))", "n=int(interval(1,8))", "b=choice(x,y)"]


def score(trial):
    """A figure with its best at lr=0.1."""
    lr = float(trial.settings["lr"])
    return 50.0 - abs(lr - 0.1) * 30 + (trial.settings["b"] == "x")


def search(folder, trials, *, varied=SPACE, stop_after=None, fail=(), **change):
    """Run a search, or its next `stop_after` trials, from what the folder holds; the trials that ran."""
    settings = {"sampler": "tpe", "trials": trials, **change}
    ledger = begin(folder, IDENTITY | {"sampler": settings["sampler"]})
    ran = []
    for trial in trials_left(plan(folder, varied, **settings), ledger):
        if len(ran) == stop_after:  # a kill took it along with the sweep
            break
        ran.append(trial)
        if len(ran) - 1 in fail:
            ledger.record(trial, "failed", code=1)
        else:
            finish(ledger, trial, [score(trial)])
    return ran


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_cut_search_goes_on_as_it_would_have(sampler, tmp_path):
    whole = search(tmp_path / "whole", 10, sampler=sampler)
    assert len({trial.name for trial in whole}) == 10
    parts = search(tmp_path / "cut", 10, sampler=sampler, stop_after=3)
    assert list(Ledger.read(tmp_path / "cut").entries)[3] == whole[3].name  # killed, and to run again
    parts += search(tmp_path / "cut", 6, sampler=sampler)
    parts += search(tmp_path / "cut", 10, sampler=sampler)
    assert parts == whole
    assert search(tmp_path / "cut", 10, sampler=sampler) == []


def test_failed_trials_count_once_and_teach_nothing(tmp_path):
    ran = search(tmp_path, 8, fail=(1, 5))
    states = [entry.state for entry in Ledger.read(tmp_path).entries.values()]
    assert [index for index, state in enumerate(states) if state == "failed"] == [1, 5]
    assert search(tmp_path, 8) == []
    assert search(tmp_path, 8, retry=True) == [ran[1], ran[5]]
    assert [entry.state for entry in Ledger.read(tmp_path).entries.values()] == ["finished"] * 8


@pytest.mark.slow
def test_the_same_settings_do_not_run_twice(tmp_path, capsys):
    for sampler in ("random", "tpe"):
        ran = search(tmp_path / sampler, 12, varied=["lr=0.1,1", "b=choice(x,y)"], sampler=sampler)
        assert sorted(trial.name for trial in ran) == ["b-x__lr-0.1", "b-x__lr-1", "b-y__lr-0.1", "b-y__lr-1"]
        assert "no other settings were found in this space; the search ends after 4 trials" in capsys.readouterr().out


def test_the_estimator_learns_from_the_results(tmp_path):
    """After eight random trials its proposals are better, in either direction."""
    for direction, sign in (("maximize", 1), ("minimize", -1)):
        folder = tmp_path / direction
        begin(folder, IDENTITY | {"sampler": "tpe"}, direction=direction)
        values = [sign * score(trial) for trial in search(folder, 30, startup=8, direction=direction)]
        assert sum(values[8:]) / 22 > sum(values[:8]) / 8


def test_trials_side_by_side_differ_from_those_that_run(tmp_path):
    """With `parallel` the estimator takes running trials for bad ones; a trial that started is never proposed again."""
    search(tmp_path, 8, startup=8)
    ledger = Ledger.read(tmp_path)
    asked = plan(tmp_path, SPACE, sampler="tpe", trials=12, startup=8, parallel=4)
    proposed = []
    for _ in range(4):
        proposed.append(propose(asked, ledger))
        ledger.record(proposed[-1], "started")
    assert len({trial.name for trial in proposed}) == 4
    assert propose(asked, ledger) is None
    again = Ledger.read(tmp_path)
    assert list(trials_left(asked, again)) == proposed


def test_a_search_of_the_version_before_continues(tmp_path):
    """Its folder has Optuna's journal beside the ledger: it is left as it is, and the ledger alone counts."""
    whole = search(tmp_path / "whole", 8)
    parts = search(tmp_path / "old", 4)
    journal = tmp_path / "old" / "optuna.journal"
    journal.write_bytes(
        b'{"op_code": 0, "worker_id": "x", "study_name": "maximize val/top1", "directions": [2]}\n{"op_'
    )
    before = journal.read_bytes()
    assert parts + search(tmp_path / "old", 8) == whole
    assert journal.read_bytes() == before


def one(override: str) -> Parameter:
    (parameter,) = read([override])[1]
    return parameter


def test_optuna_gets_the_same_values():
    d = optuna.distributions
    pairs = {
        "a=choice(x,y)": d.CategoricalDistribution(("x", "y")),
        "a=interval(0.1,2)": d.FloatDistribution(0.1, 2.0),
        "a=tag(log,interval(0.1,2))": d.FloatDistribution(0.1, 2.0, log=True),
        "a=int(interval(1,8))": d.IntDistribution(1, 8),
        "a=tag(log,int(interval(1,8)))": d.IntDistribution(1, 8, log=True),
        "a=range(1,9,2)": d.IntDistribution(1, 7, step=2),
        "a=range(0,0.31,0.1)": d.FloatDistribution(0.0, 0.3, step=0.1),
    }
    assert {text: distribution(one(text)) for text in pairs} == pairs
