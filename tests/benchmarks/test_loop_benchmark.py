"""The loop's benchmark: what it compares is the same computation, and what it prints follows from what it timed."""

import json

import pytest
import torch

from cotnet.benchmarks import loop
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.step import Reports

TINY = ["backbone=resnet_small", "data.num_classes=4", "data.image_size=16", "train.batch_size=4", "logger=none"]


def test_the_bare_loop_takes_the_same_steps(tmp_path):
    config = compose("train", [*loop.SIZES, *TINY, "schedule.warmup_epochs=0"]) | {"output_dir": str(tmp_path)}
    ours, bare = (loop.LoopBench(config, Ranks(rank=0, world_size=1, device=torch.device("cpu")), 1) for _ in range(2))
    before = bare.state.model.fc.weight.clone()
    assert ours.ours(Reports()) > 0
    assert bare.bare() > 0
    assert not torch.equal(bare.state.model.fc.weight, before)
    for key, value in ours.state.model.state_dict().items():
        assert torch.equal(value, bare.state.model.state_dict()[key]), key


def test_rows(tmp_path):
    config = compose("train", [*loop.SIZES, *TINY, "train.log_every=1"]) | {"output_dir": str(tmp_path)}
    rows = {row["name"]: row for row in loop.measure_loop(config, 2, 1)}
    assert rows["loop/ours"]["ratio"] == rows["loop/ours"]["milliseconds"] / rows["loop/bare"]["milliseconds"]
    assert rows["loop/logging"]["ratio"] == rows["loop/logging"]["milliseconds"] / rows["loop/ours"]["milliseconds"]
    assert {"loop/averaged weights", "loop/gradient norm"} < set(rows)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4  # the turn that warms up is logged as well


@pytest.mark.slow
@pytest.mark.long
def test_two_ranks_and_the_file(tmp_path):
    loop.main([*TINY, "--rounds", "1", "--steps", "1", "--json", str(tmp_path / "loop.json")])
    records = {row["name"]: row for row in json.loads((tmp_path / "loop.json").read_text())["records"]}
    two, one = records["loop/2 ranks"], records["loop/1 ranks"]
    assert two["ratio"] == two["images_per_second"] / one["images_per_second"]
