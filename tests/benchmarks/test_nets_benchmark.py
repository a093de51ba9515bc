"""The benchmarks of whole nets at sizes of seconds: records, ratios, a file that several runs fill, plots."""

import json

import pytest
import torch

from cotnet.benchmarks import memory, throughput
from cotnet.benchmarks.meters import peak_bytes

PEER = "torchvision:squeezenet1_1"
SMALL = ["--models", "cotnet_small", "--peer", PEER, "--size", "32"]


def records(path):
    return json.loads(path.read_text())["records"]


@pytest.mark.slow
def test_throughput_of_several_runs_in_one_file(tmp_path, capsys):
    file, plot = tmp_path / "t.json", tmp_path / "t.png"
    given = [*SMALL, "--mode", "inference", "--rounds", "2", "--format", "both", "--json", str(file)]
    throughput.main([*given, "--batch", "1", "2"])
    throughput.main([*given, "--batch", "2", "3", "--plot", str(plot)])
    rows = records(file)
    assert sorted({row["batch"] for row in rows}) == [1, 2, 3]
    assert len(rows) == 3 * 2 * 2  # batches, nets, memory formats
    theirs = {(row["batch"], row["memory_format"]): row["images_per_second"] for row in rows if row["name"] == PEER}
    for row in rows:
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["milliseconds"])
        if row["name"] == "cotnet_small":
            assert row["peer"] == PEER
            expected = row["images_per_second"] / theirs[row["batch"], row["memory_format"]]
            assert row["ratio"] == pytest.approx(expected)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "cotnet_small" in capsys.readouterr().out


def test_memory_grows_with_the_batch(tmp_path):
    file = tmp_path / "m.json"
    memory.main([*SMALL, "--batch", "2", "4", "--json", str(file)])
    found = {(row["name"], row["batch"]): row["peak_bytes"] for row in records(file)}
    (small, large), weights = [found["cotnet_small", batch] for batch in (2, 4)], 1_040_000 * 4
    assert small > 3 * weights  # weights, gradients, momentum
    assert small < large < 2 * small


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
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--json", "/dev/null/t.json"], "/dev/null/t.json cannot be written ("),
        (["--plot", "/"], "/ is a folder; give a file"),
    ],
)
def test_wrong_settings_are_one_line(given, message, capsys):
    with pytest.raises(SystemExit) as end:
        throughput.main(given)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
