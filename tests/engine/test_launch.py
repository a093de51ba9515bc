"""What the launcher says of ranks that fail, in real processes."""

import os
import signal

import pytest
import torch

from cotnet.engine.distributed import join_ranks
from cotnet.engine.launch import launch
from cotnet.errors import RunError

pytestmark = pytest.mark.slow


def one_fails(config, store):
    with join_ranks(store, timeout_minutes=1) as ranks:
        if ranks.rank == 1 and config["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if ranks.rank == 1:
            raise RunError("rank 1 has had enough")
        ranks.sum(torch.zeros(1))
    return 0


def test_the_rank_that_failed_is_heard_and_not_those_it_left_alone():
    with pytest.raises(RunError, match=r"^rank 1 has had enough$"):
        launch(one_fails, {"killed": False}, 3)


def test_a_killed_rank_is_said_in_a_line():
    with pytest.raises(RunError, match="terminated with signal SIGKILL; a rank that is killed often ran out of memory"):
        launch(one_fails, {"killed": True}, 3)
