"""Checkpoints behind the training: copied when asked for, one at a time, errors surface, the right ones are kept."""

import itertools
import os
import random
import signal
import threading
import time

import pytest
import torch

from cotnet.config.compose import compose
from cotnet.engine import checkpoints
from cotnet.engine.checkpoints import Background, kept_epochs, snapshot, write
from cotnet.engine.training import finished
from cotnet.errors import RunError
from cotnet.settings import CheckpointSettings, TrainSettings


def saving(**values):
    return CheckpointSettings(
        **{"every_steps": None, "every_minutes": None, "keep_every": None, "keep_top": None, **values}
    )


def test_snapshot_is_of_its_moment():
    weight = torch.ones(3)
    tree = {"model": {"w": weight}, "groups": [{"lr": 0.1, "params": (0, weight)}], "name": "x"}
    taken = snapshot(tree)
    weight.zero_()
    assert taken["model"]["w"].tolist() == [1, 1, 1] and taken["groups"][0]["params"][1].tolist() == [1, 1, 1]
    assert taken["groups"][0]["lr"] == 0.1 and taken["name"] == "x"


def test_one_job_at_a_time_and_errors_surface():
    background, gate, order = Background(), threading.Event(), []
    background.start(lambda: (gate.wait(10), order.append("first"))[-1])
    background.check()  # still running: nothing to say
    assert order == []
    gate.set()
    background.start(lambda: order.append("second"))
    background.wait()
    assert order == ["first", "second"]

    def full() -> None:
        raise RunError("the disk is full")

    background.start(full)
    with pytest.raises(RunError, match="the disk is full"):
        background.wait()
    background.wait()  # once
    background.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, set()), ({"keep_every": 2}, {2, 4}), ({"keep_top": 2}, {1, 3}), ({"keep_every": 3, "keep_top": 1}, {3, 1})],
)
def test_kept_epochs(settings, kept):
    history = [[1.0, 70.0], [2.0, 65.0], [3.0, 70.0], [4.0, 69.0], [4.5, 90.0]]  # a part of an epoch has no file
    assert kept_epochs(saving(**settings), history, 4) == kept


def test_every_nth_epoch_is_kept_whether_it_was_evaluated_or_not():
    """evaluation.every=2 after five epochs."""
    assert kept_epochs(saving(keep_every=1), [[2.0, 70.0], [4.0, 69.0]], 5) == {1, 2, 3, 4, 5}


def test_last_comes_last_and_what_is_not_kept_goes(tmp_path):
    """A copy that cannot be made leaves last.pt as it was; so a run never counts on a copy that is not there."""
    checkpoints.save(tmp_path / "last.pt", {"format": checkpoints.FORMAT, "x": 1})
    (tmp_path / "epoch_0001.pt").write_bytes(b"old")
    seen = []
    write(
        tmp_path,
        {"format": checkpoints.FORMAT, "x": 2},
        also={"best.pt", "epoch_0002.pt"},
        keep={"epoch_0002.pt"},
        before=lambda: seen.append(checkpoints.load(tmp_path / "last.pt")["x"]),
    )
    assert seen == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "epoch_0002.pt", "last.pt"]
    assert all(checkpoints.load(path)["x"] == 2 for path in tmp_path.iterdir())
    (tmp_path / "epoch_0003.pt").mkdir()  # nothing can be renamed onto a folder
    with pytest.raises(RunError, match="cannot write"):
        write(tmp_path, {"format": checkpoints.FORMAT, "x": 3}, also={"epoch_0003.pt"}, keep=set(), before=lambda: None)
    assert checkpoints.load(tmp_path / "last.pt")["x"] == 2


def train_settings(**values):
    return TrainSettings(**{**compose("train", ["data=digits"])["train"], **values})


def test_not_finished_before_its_evaluation():
    settings = train_settings(epochs=3, max_steps=5)
    assert not finished(settings, {"step": 5, "epoch": 1, "seconds": 0.0, "evaluated": 4})  # cut while evaluating
    assert finished(settings, {"step": 5, "epoch": 1, "seconds": 0.0, "evaluated": 5})
    assert not finished(train_settings(epochs=3, max_steps=9), {"step": 5, "epoch": 1, "seconds": 0.0, "evaluated": 5})
    assert finished(settings, {"step": 4, "epoch": 3, "seconds": 0.0, "evaluated": 4})


@pytest.mark.slow
def test_a_kill_while_saving_leaves_whole_files(tmp_path):
    """Processes that do nothing but save are killed: what is there is whole, and last.pt never newer than its copy."""
    chance = random.Random(0)
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    seen = set()
    for start in range(0, 8000, 1000):
        child = os.fork()
        if child == 0:
            for number in itertools.count(start):
                weights = torch.full((300_000,), float(number))
                checkpoints.save(last, {"format": checkpoints.FORMAT, "x": number, "w": weights}, also=[best])
        time.sleep(chance.uniform(0.1, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kept = [checkpoints.load(path) for path in (last, best)]
        assert all(bool((one["w"] == one["x"]).all()) for one in kept)
        assert 0 <= kept[1]["x"] - kept[0]["x"] <= 1
        seen.add(kept[0]["x"])
    assert len(seen) == 8
    assert seen - set(range(0, 8000, 1000))  # some were killed after their first
