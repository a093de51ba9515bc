"""The ledger, by value: states, damage, refusals."""

import json

import pytest

from cotnet.errors import InputError
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.space import Trial

from .by_hand import IDENTITY, START, begin, finish


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


def test_the_ledger_is_plain_json_lines(tmp_path):
    ledger = begin(tmp_path)
    finish(ledger, Trial(name="a-1", overrides=("a=1",)), [50.0])
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert lines[:2] == [{"sweep": IDENTITY}, {"start": START}]
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines[2:]] == [
        {"trial": "a-1", "state": "started", "overrides": ["a=1"]},
        {"trial": "a-1", "state": "finished", "code": 0, "seconds": 2.0},
    ]
