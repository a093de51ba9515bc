"""The tests pass on machines with one GPU or eight: what is not marked `gpu` sees none, and SMALL is one rank."""

import os

import pytest
import torch
from programs import SMALL, wants_gpu

from cotnet.config.compose import compose
from cotnet.engine.launch import count_ranks


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_a_small_run_is_one_rank_with_any_number_of_gpus(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert count_ranks(compose("train", [*SMALL, "data.root=x"])["launch"]["ranks"]) == 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), False),
        (("-m", "gpu"), True),
        (("-q", "-m", "gpu and not long"), True),
        (("-m", "not gpu"), False),
        (("-n", "2", "-m", "not long"), False),
        (("tests/ops", "-k", "gpu"), False),
    ],
)
def test_who_sees_the_gpus(arguments, wanted):
    assert wants_gpu(["pytest", *arguments]) is wanted


def test_this_test_sees_none():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert torch.cuda.device_count() == 0
