"""python -m cotnet.benchmarks.local_aggregation on small maps: what it records, never how fast."""

import json

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from cotnet.benchmarks.local_aggregation import (
    PEER,
    copy_bandwidth,
    extra_bytes,
    main,
    moved_bytes,
    unfold_form,
)
from cotnet.benchmarks.operator_tensors import make_tensors
from cotnet.ops import local_aggregation


def test_records_table_and_plot(tmp_path, capsys):
    small = [
        "--stages",
        "16x4",
        "--batch",
        "2",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--formats",
        "channels_last",
        "--forms",
        "eager",
    ]
    main([*small, "--json", str(tmp_path / "operator.json"), "--plot", str(tmp_path / "operator.png")])
    records = json.loads((tmp_path / "operator.json").read_text())["records"]
    forms = ["eager", PEER]
    assert [(record["name"], record["form"]) for record in records] == [
        ("2x16x4x4 channels_last", form) for form in forms
    ]
    for record in records:
        assert (record["peer"], record["dtype"]) == (PEER, "float32")
        assert record["peak_maps"] == record["peak_bytes"] / (2 * 16 * 4 * 4 * 4)
        assert record["ratio"] == records[-1]["milliseconds"] / record["milliseconds"]
    assert "peak maps" in capsys.readouterr().out
    with Image.open(tmp_path / "operator.png") as plot:
        assert min(plot.size) > 100


def test_the_operator_needs_less_than_a_feature_map():
    for memory_format in ("contiguous", "channels_last"):
        tensors = make_tensors("64x28", 16, memory_format, torch.float32, torch.device("cpu"))
        size = tensors.value.numel() * 4
        assert extra_bytes(local_aggregation, tensors) < size
        assert extra_bytes(unfold_form, tensors) > 9 * size
        assert moved_bytes(tensors) == (2 * size + size * 9 // 8, 3 * size + 2 * size * 9 // 8)
        assert_close(local_aggregation(*tensors[:2]), unfold_form(*tensors[:2]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "value", "weight"),  # strides of channel, and of group and kernel position
    [
        ("contiguous", 196, (9 * 196, 196)),
        ("channels_last", 1, (1, 8)),
        ("channels_last, contiguous weights", 1, (9 * 196, 196)),
    ],
)
def test_layouts_of_a_gpu(layout, value, weight):
    tensors = make_tensors("64x14", 2, layout, torch.bfloat16, torch.device("meta"))
    assert tensors.value.stride(1) == tensors.upstream.stride(1) == value
    assert tensors.weight.shape == (2, 8, 9, 14, 14)
    assert tensors.weight.stride()[1:3] == weight


@pytest.mark.gpu
def test_copies_have_a_bandwidth():
    assert copy_bandwidth(torch.device("cuda", 0)) > 1e10
