"""A small network of any operator: it runs and learns, and its parameters are those of docs/fashion_mnist.md."""

import json
import re
from pathlib import Path

import pytest
import torch

from cotnet import models
from cotnet.models.operators import OPERATORS

# The operator -> channels between the blocks, for nearly as many parameters as CoT has.
CHANNELS = {
    "convolution": 56, "grouped": 77, "squeeze_excite": 51, "split_attention": 50, "selective_kernel": 67, "cot": 64,
    "coxt": 72, "stand_alone": 75, "local_relation": 80, "halo": 74, "attention": 75, "augmented": 55, "lambda": 80,
    "non_local": 46,
}  # fmt: skip


def small(operator, **settings):
    torch.manual_seed(0)
    settings = {"stages": (2, 3, 4), "num_classes": 10, "image_size": 28, **settings}
    return models.operator_small(operator=operator, channels=CHANNELS[operator], **settings)


def test_every_operator_has_the_parameters_of_cot():
    assert CHANNELS.keys() == OPERATORS.keys()
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in small(name).parameters()) for name in OPERATORS}
    assert counts["cot"] == 533_202
    assert max(abs(count / counts["cot"] - 1) for count in counts.values()) < 0.01


def test_the_page_holds_what_the_runs_logged():
    docs = Path(__file__).parents[2] / "docs"
    row = re.compile(r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \| .* \| ([\d.]+) ±", re.MULTILINE)
    found = row.findall((docs / "fashion_mnist.md").read_text())
    assert {name: int(channels) for name, channels, _, _ in found} == CHANNELS
    for name, _, parameters, top1 in found:
        logged = (docs / "fashion_mnist" / "operators" / f"{name}.jsonl").read_text().splitlines()
        assert f"{json.loads(logged[-1])['val/top1_ema']:.2f}" == top1
        with torch.device("meta"):
            assert sum(p.numel() for p in small(name).parameters()) == int(parameters.replace(",", ""))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("stages", [(2, 3, 4), pytest.param((1, 2, 3, 4), marks=pytest.mark.long)])
@pytest.mark.slow
def test_trains_at_odd_and_even_sizes(operator, stages):
    model = small(operator, stages=stages)
    assert model.forward_stages(torch.zeros(2, 3, 28, 28))[-1].shape[2:] == (4, 4)
    images, labels = torch.randn(8, 3, 28, 28), torch.arange(8)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(model(images), labels))
        losses[-1].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_small_cot_and_convolution_are_the_networks_of_their_names():
    """The same weights, the same logits as cotnet_small's and resnet_small's."""
    images = torch.randn(2, 3, 32, 32)
    for operator, name in (("cot", "cotnet_small"), ("convolution", "resnet_small")):
        twin = getattr(models, name)(num_classes=10).eval()
        model = models.operator_small(operator=operator, num_classes=10).eval()
        model.load_state_dict(twin.state_dict())
        assert torch.equal(model(images), twin(images))


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ("attention", "9 channels cannot be divided among 2 heads; give a divisor"),
        ("stand_alone", "StandAloneAttention cannot divide 9 channels among 4 halves of heads"),
        ("local_relation", "LocalRelation cannot divide 9 channels among 4 channels that share their weights"),
    ],
)
def test_a_width_that_does_not_divide_is_one_line(operator, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        models.operator_small(operator=operator, width=9)
