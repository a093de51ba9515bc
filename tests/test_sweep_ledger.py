"""The ledger and what is read from it, on sweeps written by hand: states, order, refusals, searches that continue."""

import json

import optuna
import pytest

from cotnet import records
from cotnet.config.compose import to_yaml
from cotnet.errors import InputError
from cotnet.sweeps import results
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.processes import outcome, shares
from cotnet.sweeps.run import Grid
from cotnet.sweeps.search import JOURNAL, Search, importances, observed
from cotnet.sweeps.space import SweepSettings, Trial, read

IDENTITY = {"format": 1, "sampler": "grid", "shared": ["experiment=digits"]}
START = {"program": "train.py", "flags": [], "shared": ["experiment=digits", "train.epochs=2"]}
START |= {"target": "val/top1", "direction": "maximize"}


def settings(**change):
    space = {"target": "val/top1", "direction": "maximize", "parallel": 1, "retry": False, "startup": 4, "seed": 0}
    return SweepSettings(**{"sampler": "grid", "space": {}, "trials": None, **space, **change})


def begin(folder, identity=IDENTITY):
    folder.mkdir(exist_ok=True)
    ledger = Ledger.open(folder, identity)
    ledger.begin(START)
    return ledger


def finish(ledger, trial, top1):
    """A trial that ran and logged `top1`, a figure per epoch."""
    ledger.record(trial, "started")
    folder = ledger.folder / trial.name
    folder.mkdir()
    records.write_text(folder / "config.yaml", to_yaml({"train": {"epochs": 2}}))
    for epoch, value in enumerate(top1, start=1):
        records.append(folder / "metrics.jsonl", {"step": epoch, "epoch": float(epoch), "val/top1": value})
    ledger.record(trial, "finished", seconds=2.0)


def test_the_last_word_on_a_trial_counts(tmp_path):
    ledger = begin(tmp_path)
    a, b = Trial(name="a-1", overrides=("a=1",)), Trial(name="a-2", overrides=("a=2",))
    ledger.record(a, "started")
    ledger.record(a, "interrupted", seconds=3.0, code=75)
    ledger.record(a, "started")
    ledger.record(b, "started")
    ledger.record(b, "failed", seconds=1.0, code=2, line="optimizer.lr=-1 must be a positive number")
    ledger.record(a, "finished", seconds=4.0)
    again = Ledger.read(tmp_path)
    assert again.entries == ledger.entries
    assert again.entries["a-1"].state == "finished"
    assert again.entries["a-1"].seconds == 7.0
    assert again.entries["a-2"].line == "optimizer.lr=-1 must be a positive number"
    assert [outcome(code) for code in (0, 1, 2, 75, -9, -15)] == ["finished", *["failed"] * 2, *["interrupted"] * 3]


def test_trials_side_by_side_get_equal_shares():
    def split(parallel, gpus, cores):
        return [(share.gpus, sorted(share.cores)) for share in shares(parallel, gpus, cores)]

    assert split(2, ["3", "5", "GPU-a", "7", "1"], [0, 1]) == [(("3", "5"), [0, 1]), (("GPU-a", "7"), [0, 1])]
    assert split(2, [], [1, 4, 5, 6, 7]) == [((), [1, 4]), ((), [5, 6])]
    with pytest.raises(InputError) as error:
        shares(3, ["0", "1"], [0, 1, 2, 3])
    assert str(error.value) == "sweep.parallel=3 but 2 GPUs are visible; use at most 2"


def test_a_line_cut_by_a_kill_is_taken_away(tmp_path):
    begin(tmp_path).record(Trial(name="a-1", overrides=("a=1",)), "started")
    whole = (tmp_path / "ledger.jsonl").read_bytes()
    (tmp_path / "ledger.jsonl").write_bytes(whole + b'{"trial": "a-1", "sta')
    assert list(Ledger.read(tmp_path).entries) == ["a-1"]
    Ledger.open(tmp_path, IDENTITY)
    assert (tmp_path / "ledger.jsonl").read_bytes() == whole


def test_another_sweep_is_refused_and_nothing_lost(tmp_path):
    begin(tmp_path)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    others = {
        "shared was experiment=digits, now seed=1": {"shared": ["seed=1"]},
        "shared was without it, now seed=1": {"shared": ["experiment=digits", "seed=1"]},
        'sampler was "grid", now "tpe"': {"sampler": "tpe"},
    }
    for difference, change in others.items():
        with pytest.raises(InputError) as error:
            Ledger.open(tmp_path, IDENTITY | change)
        assert str(error.value) == f"{tmp_path} holds another sweep ({difference}); choose another output_dir"
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    with pytest.raises(InputError, match="holds no sweep"):
        Ledger.read(tmp_path / "nothing")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="holds a run, not a sweep"):
        Ledger.open(tmp_path / "run", IDENTITY)
    (tmp_path / "ledger.jsonl").write_bytes(b'{"step": 3}\n' + before)
    with pytest.raises(InputError, match=r"ledger\.jsonl, line 1: not a ledger's"):
        Ledger.read(tmp_path)


def test_a_grid_runs_what_has_not_ended(tmp_path):
    ledger = begin(tmp_path)
    one, two, three = (Trial(name=f"a-{i}", overrides=(f"a={i}",)) for i in (1, 2, 3))
    finish(ledger, one, [50.0])
    for trial, state in ((two, "failed"), (three, "interrupted")):
        ledger.record(trial, "started")
        ledger.record(trial, state, code=1)
    parameters = read(["a=1,2,3,4"])[1]
    for retry, left in ((False, ["a-3", "a-4"]), (True, ["a-2", "a-3", "a-4"])):
        source = Grid(ledger, settings(retry=retry), parameters)
        assert [trial.name for trial in iter(source.next, None)] == left
    assert source.total == 4


def test_results_are_sorted_and_explained(tmp_path, capsys):
    ledger = begin(tmp_path)
    for index, top1 in enumerate(([40.0, 30.0], [10.0, 60.5], [20.0]), start=1):
        finish(ledger, Trial(name=f"a-{index}", overrides=(f"a={index}", "train.epochs=2")), top1)
    failed = Trial(name="a-4", overrides=("a=4", "train.epochs=2"))
    ledger.record(failed, "started")
    ledger.record(failed, "failed", seconds=1.0, code=1, line="the loss is not finite")
    running = Trial(name="a-5", overrides=("a=5", "train.epochs=2"))
    ledger.record(running, "started")
    rows = results.results(ledger)
    assert [(row.entry.trial.name, row.value, row.epoch) for row in rows[:3]] == [
        ("a-2", 60.5, 2.0),
        ("a-1", 40.0, 1.0),
        ("a-3", 20.0, 1.0),
    ]
    results.show(tmp_path)
    out = capsys.readouterr().out
    assert "failed: the loss is not finite" in out
    assert "killed" in out  # it began and nobody holds the folder
    assert "python train.py experiment=digits a=2 train.epochs=6\n" in out
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    ledger.start |= {"direction": "minimize"}
    assert [row.value for row in results.results(ledger)[:3]] == [10.0, 20.0, 30.0]
    ledger.start |= {"target": "val/topp1"}
    with pytest.raises(InputError) as error:
        results.results(ledger)
    assert str(error.value) == "sweep.target=val/topp1 is logged by no trial; did you mean val/top1?"


SPACE = ["lr=tag(log,interval(0.01,1))", "n=int(interval(1,8))", "b=choice(x,y)"]


def score(trial):
    """A figure with its best at lr=0.1."""
    lr = float(trial.settings["lr"])
    return 50.0 - abs(lr - 0.1) * 30 + (trial.settings["b"] == "x")


def search(folder, trials, *, sampler="tpe", stop_after=None, retry=False, fail=()):
    """Run a search, or its next `stop_after` trials; a new process's view each time. The trials that ran."""
    ledger = begin(folder, IDENTITY | {"sampler": sampler})
    source = Search(ledger, settings(sampler=sampler, trials=trials, retry=retry), read(SPACE)[1])
    ran = []
    while len(ran) != stop_after and (trial := source.next()):
        ran.append(trial)
        if len(ran) - 1 in fail:
            ledger.record(trial, "started")
            ledger.record(trial, "failed", code=1)
        else:
            finish(ledger, trial, [score(trial)])
        source.tell(trial, failed=len(ran) - 1 in fail)
    return ran


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_cut_search_goes_on_as_it_would_have(sampler, tmp_path):
    whole = search(tmp_path / "whole", 10, sampler=sampler)
    assert len({trial.name for trial in whole}) == 10
    parts = search(tmp_path / "cut", 10, sampler=sampler, stop_after=3)
    with (tmp_path / "cut" / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_co')  # a kill in the middle of a line
    (tmp_path / "cut" / f"{JOURNAL}.lock").symlink_to(tmp_path)  # and with Optuna's lock held
    parts += search(tmp_path / "cut", 6, sampler=sampler)
    parts += search(tmp_path / "cut", 10, sampler=sampler)
    assert parts == whole
    assert search(tmp_path / "cut", 10, sampler=sampler) == []


def test_the_journal_follows_the_ledger(tmp_path):
    """Asked and not run, run and not told, failed and run again: each counts once."""
    ledger = begin(tmp_path, IDENTITY | {"sampler": "tpe"})
    source = Search(ledger, settings(sampler="tpe", trials=4), read(SPACE)[1])
    asked = [source.next() for _ in range(3)]
    finish(ledger, asked[0], [40.0])
    ledger.record(asked[1], "started")
    ledger.record(asked[1], "failed", code=1)
    again = Search(Ledger.read(tmp_path), settings(sampler="tpe", trials=4), read(SPACE)[1])
    states = [trial.state.name for trial in again.study.trials]
    assert states == ["COMPLETE", "FAIL", "RUNNING"]
    assert again.study.trials[0].value == 40.0
    assert again.pending == [asked[2]]
    retried = Search(Ledger.read(tmp_path), settings(sampler="tpe", trials=4, retry=True), read(SPACE)[1])
    assert {trial.name for trial in retried.pending} == {asked[1].name, asked[2].name}
    ran = search(tmp_path, 4, retry=True)
    assert len(ran) == 3
    assert sorted(entry.state for entry in Ledger.read(tmp_path).entries.values()) == ["finished"] * 4
    values = [t.value for t in retried.study.get_trials() if t.state == optuna.trial.TrialState.COMPLETE]
    assert sorted(values) == sorted([40.0, *(score(trial) for trial in ran)])


def test_the_same_settings_do_not_run_twice(tmp_path):
    ledger = begin(tmp_path, IDENTITY | {"sampler": "random"})
    source = Search(ledger, settings(sampler="random", trials=12), read(["b=choice(x,y)"])[1])
    ran = []
    while trial := source.next():
        ran.append(trial)
        finish(ledger, trial, [50.0])
        source.tell(trial, failed=False)
    assert sorted(trial.name for trial in ran) == ["b-x", "b-y"]
    assert len(source.study.trials) == 12


def test_importance_finds_the_setting_that_matters():
    parameters = read(SPACE)[1]
    lrs, ns = (0.01, 0.03, 0.1, 0.3, 1.0), (1, 4, 8)
    trials = [Trial(name=f"{lr}{n}", overrides=(f"lr={lr}", f"n={n}", "b=x")) for lr in lrs for n in ns]
    shares = importances(trials, [score(trial) for trial in trials], parameters)
    assert shares["lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(trials[:3], [1.0, 2.0, 3.0], parameters) is None
    assert importances(trials, [1.0] * len(trials), parameters) is None
    assert [(p.key, p.values) for p in observed(trials)] == [
        ("lr", tuple(map(str, lrs))),
        ("n", tuple(map(str, ns))),
    ]


def test_the_ledger_is_plain_json_lines(tmp_path):
    ledger = begin(tmp_path)
    finish(ledger, Trial(name="a-1", overrides=("a=1",)), [50.0])
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert lines[:2] == [{"sweep": IDENTITY}, {"start": START}]
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines[2:]] == [
        {"trial": "a-1", "state": "started", "overrides": ["a=1"]},
        {"trial": "a-1", "state": "finished", "code": 0, "seconds": 2.0},
    ]
