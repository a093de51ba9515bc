"""Sweeps written by hand: a ledger, and trials that logged given figures."""

from cotnet import records
from cotnet.config.compose import to_yaml
from cotnet.files import write_text
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.space import SweepPlan, SweepSettings, read

IDENTITY = {"format": 1, "sampler": "grid", "shared": ["experiment=digits"]}
START = {"program": "train.py", "flags": [], "shared": ["experiment=digits", "train.epochs=2"]}
START |= {"target": "val/top1", "direction": "maximize"}
GRID = {"sampler": "grid", "space": {}, "target": "val/top1", "direction": "maximize", "parallel": 1, "retry": False}
GRID |= {"trials": None, "startup": 4, "seed": 0}


def plan(folder, varied, **change):
    """The plan of a sweep over the overrides that vary."""
    parameters = read(varied)[1]
    return SweepPlan(settings=SweepSettings(**GRID | change), folder=folder, shared=[], parameters=parameters)


def begin(folder, identity=IDENTITY, **start):
    folder.mkdir(exist_ok=True)
    ledger = Ledger.open(folder, identity)
    ledger.begin(START | start)
    return ledger


def finish(ledger, trial, top1):
    """A trial that ran and logged `top1`, a figure per epoch."""
    ledger.record(trial, "started")
    folder = ledger.folder / trial.name
    folder.mkdir()
    write_text(folder / "config.yaml", to_yaml({"train": {"epochs": 2, "max_steps": None}}))
    for epoch, value in enumerate(top1, start=1):
        records.append(folder / "metrics.jsonl", {"step": epoch, "epoch": float(epoch), "val/top1": value})
    ledger.record(trial, "finished", seconds=2.0)
