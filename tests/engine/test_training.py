"""What is decided after a step, on real ranks."""

import itertools
import json
import time
from types import SimpleNamespace

import pytest

from cotnet.engine.distributed import join_ranks
from cotnet.engine.launch import launch
from cotnet.engine.training import Decider

STEPS, PAUSE, EVERY = 30, 0.05, 0.4  # seconds


def decide(given, store):
    """A rank that takes steps of PAUSE and is to save every EVERY seconds; rank 0 writes the steps that it saved."""
    with join_ranks(store, timeout_minutes=1) as ranks:
        settings = SimpleNamespace(max_steps=None, max_minutes=None, log_every=1000)
        output = SimpleNamespace(saving=SimpleNamespace(every_minutes=EVERY / 60, every_steps=None))
        data = SimpleNamespace(steps_per_epoch=1000)
        context = SimpleNamespace(
            ranks=ranks, settings=settings, output=output, data=data, stop_requested=lambda: False
        )
        decider, saved = Decider(context), []
        for step in range(1, STEPS + 1):
            time.sleep(PAUSE)
            state = SimpleNamespace(step=step, batch_in_epoch=step, tick=lambda: 0.0)
            if decider.after_step(state).save:
                saved.append(step)
                decider.saved()
        decider.interrupted()  # reads the last exchange
        if ranks.first:
            given.write_text(json.dumps(saved))
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_that_is_due_is_saved_once(ranks, tmp_path):
    assert launch(decide, tmp_path / "saved.json", ranks) == 0
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved
    assert all(later - earlier > 2 for earlier, later in itertools.pairwise(saved))
