"""The estimate of a training step: a net of two layers counted by hand, whole nets, the command line."""

import json

import pytest
import torch
from torch import nn

from cotnet.benchmarks import roofline
from cotnet.benchmarks.roofline import OperatorCost, estimate, trace, trace_training
from cotnet.models import cotnet_small
from cotnet.models.contextual import CoTLayer
from cotnet.models.layers import DropPath


def two_layers():
    """The operators of forward and backward: 3 samples of 4 features, 8 hidden units, 2 outputs, float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    samples, upstream = torch.randn(3, 4), torch.randn(3, 2)
    return trace(lambda: net(samples).backward(upstream))


def test_a_net_of_two_layers_by_hand():
    x, hidden, out, first, second = 3 * 4, 3 * 8, 3 * 2, 4 * 8, 8 * 2  # entries
    expected = [
        OperatorCost("mm", 4 * (x + first + hidden), 2 * 3 * 4 * 8),
        OperatorCost("relu", 4 * (hidden + hidden), 0),
        OperatorCost("mm", 4 * (hidden + second + out), 2 * 3 * 8 * 2),
        OperatorCost("mm", 4 * (out + hidden + second), 2 * 3 * 8 * 2),  # gradient of the second weight
        OperatorCost("mm", 4 * (out + second + hidden), 2 * 3 * 8 * 2),  # of the hidden units
        OperatorCost("threshold_backward", 4 * 3 * hidden, 0),
        OperatorCost("mm", 4 * (hidden + x + first), 2 * 3 * 4 * 8),  # of the first weight
    ]
    found = two_layers()
    assert sorted(map(str, found)) == sorted(map(str, expected))
    assert [operator.name for operator in found[:3]] == ["mm", "relu", "mm"]


def test_what_limits_a_step():
    operators = two_layers()
    assert sum(operator.bytes for operator in operators) == 1576
    assert sum(operator.flops for operator in operators) == 672
    slow_memory = estimate(operators, bandwidth=1e6, peak=1e9, host_us=10)
    assert (slow_memory.launches, slow_memory.limit) == (7, "bandwidth")
    assert slow_memory.gpu_ms == pytest.approx(1.576)
    assert slow_memory.host_ms == pytest.approx(0.07)
    slow_products = estimate(operators, bandwidth=1e9, peak=1e6, host_us=10)
    assert slow_products.limit == "compute"
    assert slow_products.gpu_ms == pytest.approx(0.672 + (192 + 288) / 1e6)  # relu and its gradient only move
    assert estimate(operators, bandwidth=1e12, peak=1e12, host_us=10).limit == "launches"


def test_a_tensor_that_is_only_expanded_is_read_once():
    row = torch.zeros(1, 8).expand(100, 8)
    (added,) = trace(lambda: torch.add(row, 1.0))
    assert added == OperatorCost("add", 4 * (8 + 800), 0)
    assert trace(lambda: (row.view(100, 8), torch.empty(5), row[3])) == []


def test_operators_in_place_read_and_write():
    a, b = torch.zeros(10), torch.ones(10)
    assert trace(lambda: a.add_(b)) == [OperatorCost("add_", 4 * 30, 0)]
    assert trace(lambda: torch._foreach_add_([a, a], [b, b])) == [OperatorCost("_foreach_add_", 4 * 60, 0)]


@pytest.mark.slow
@pytest.mark.long
def test_a_whole_net_without_its_memory():
    one, two = (trace_training("cotnet_small", batch, 32) for batch in (4, 8))
    names = [operator.name for operator in one]
    blocks = sum(isinstance(module, CoTLayer) for module in cotnet_small().modules())
    assert blocks > 0
    assert names.count("local_aggregation") == names.count("local_aggregation_backward") == blocks
    assert [operator.name for operator in two] == names
    assert sum(operator.flops for operator in two) == 2 * sum(operator.flops for operator in one)


@pytest.mark.slow
def test_the_table(tmp_path, capsys):
    file = tmp_path / "roofline.json"
    given = ["--models", "resnet_small", "--size", "32", "--batch", "2", "4096", "--json", str(file)]
    roofline.main([*given, "--device", "h200", "--host-us", "1"])
    rows = json.loads(file.read_text())["records"]
    assert [(row["device"], row["batch"], row["limit"]) for row in rows] == [
        ("h200", 2, "launches"),
        ("h200", 4096, "bandwidth"),
    ]
    assert rows[0]["images_per_second_at_most"] == pytest.approx(2000 / rows[0]["host_ms"])
    assert rows[1]["images_per_second_at_most"] == pytest.approx(4096e3 / rows[1]["gpu_ms"])
    roofline.main([*given, "--bandwidth", "1", "--tflops", "0.001"])
    assert [row["limit"] for row in json.loads(file.read_text())["records"]] == ["compute", "compute"]
    assert "1 TB/s, 0.001 TFLOP/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--bandwidth", "1"], "--bandwidth and --tflops belong together; give both, or --device NAME"),
        (["--batch", "0"], "--batch and --size must be at least 1, --host-us at least 0"),
        (["--models", "nothing"], "nothing is no model"),
    ],
)
def test_wrong_settings(given, line, capsys):
    with pytest.raises(SystemExit) as end:
        roofline.main(given)
    assert end.value.code == 2
    assert line in capsys.readouterr().err


def test_drop_path_costs_no_pass_of_its_own():
    """One operator reads and writes whole maps: the addition of the shortcut, which is there without drop path too."""
    shortcut, residual = torch.rand(2, 4, 16, 16), torch.rand(2, 4, 16, 16)
    for probability, expected in ((0.5, "addcmul"), (0.0, "add")):
        operators = trace(lambda probability=probability: DropPath(probability)(shortcut, residual))
        assert [one.name.rstrip("_") for one in operators if one.bytes >= shortcut.nbytes] == [expected]
