"""The benchmark of whole nets at sizes of seconds: records, ratios, a file that several runs fill, plots."""

import json

import pytest
import torch

from cotnet.benchmarks import nets
from cotnet.benchmarks.common import in_turns, one_thread_seconds, peak_bytes

PEER = "torchvision:squeezenet1_1"
SMALL = ["--models", "resnet_small", "--peer", PEER, "--size", "32", "--rounds", "1"]


def records(path):
    return json.loads(path.read_text())["records"]


def test_speed_of_several_runs_in_one_file(tmp_path, capsys):
    file, plot = tmp_path / "t.json", tmp_path / "t.png"
    removed = {"name": "resnet_small", "batch": 2, "size": 32, "mode": "inference", "dtype": "fp32", "recompute": True}
    removed |= {"device": "cpu", "memory_format": "contiguous", "images_per_second": 1.0}
    same = {**removed, "recompute": False, "compiled": False}
    file.write_text(json.dumps({"records": [removed, same]}))  # of an older version: one was measured as it is today
    given = [*SMALL, "--mode", "inference", "--json", str(file)]
    nets.main([*given, "--batch", "1", "2", "--format", "both"])
    nets.main([*given, "--batch", "2", "3", "--plot", str(plot)])
    rows = records(file)
    assert rows.pop(0) == removed
    assert sorted((row["name"], row["memory_format"], row["batch"]) for row in rows) == [
        (name, layout, batch)
        for name in ("resnet_small", PEER)
        for layout, batches in (("channels_last", (1, 2)), ("contiguous", (1, 2, 3)))
        for batch in batches
    ]
    theirs = {(row["batch"], row["memory_format"]): row["images_per_second"] for row in rows if row["name"] == PEER}
    for row in rows:
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["milliseconds"])
        if row["name"] == "resnet_small":
            assert row["peer"] == PEER
            last = row["memory_format"] == "channels_last" or row["batch"] != 2
            expected = row["images_per_second"] / theirs[row["batch"], row["memory_format"]]
            assert row["ratio"] == pytest.approx(expected) or not last
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "resnet_small" in capsys.readouterr().out


def test_cpu_time_of_one_thread_is_another_record(tmp_path):
    file, threads = tmp_path / "t.json", torch.get_num_threads()
    given = [*SMALL, "--mode", "inference", "--batch", "1", "--json", str(file)]
    nets.main(given)
    nets.main([*given, "--cpu-time"])
    assert [row["cpu_time"] for row in records(file)] == [False, False, True, True]
    assert torch.get_num_threads() == threads
    seen = []
    assert one_thread_seconds(lambda: seen.append(torch.get_num_threads())) >= 0
    assert seen == [1]


def test_memory_grows_with_the_batch(tmp_path):
    file = tmp_path / "m.json"
    nets.main([*SMALL, "--measure", "memory", "--batch", "2", "4", "--json", str(file)])
    found = {(row["name"], row["batch"]): row["peak_bytes"] for row in records(file)}
    small, large = (found["resnet_small", batch] for batch in (2, 4))
    weights = 4 * sum(parameter.numel() for parameter in nets.build_net("resnet_small", 32).parameters())
    assert small > 3 * weights  # weights, gradients, momentum
    assert small < large < 2 * small


def test_turns_change_their_order():
    order = []
    tasks = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    assert in_turns(tasks, 2) == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}
    assert "".join(order) == "abcbcacab"


def test_peak_of_known_allocations():
    def work():
        first = torch.zeros(1 << 20)
        second = torch.zeros(1 << 19)
        del first
        third = torch.zeros(1 << 18)
        del second, third

    assert peak_bytes(torch.device("cpu"), work) == 4 * ((1 << 20) + (1 << 19))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--models", "cotnet5"], "cotnet5 is no model"),
        (["--fuse"], "--fuse is for --mode inference"),
        (["--batch", "0"], "must be at least 1"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--json", "/dev/null/t.json"], "/dev/null/t.json cannot be written ("),
        (["--plot", "/"], "/ is a folder; give a file"),
    ],
)
def test_wrong_settings_are_one_line(given, message, capsys):
    with pytest.raises(SystemExit) as end:
        nets.main(given)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
