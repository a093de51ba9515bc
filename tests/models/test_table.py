"""The zoo's table: counts equal to the reference, docs/models.md up to date."""

from pathlib import Path

import pytest
import torchvision
from reference import read

from cotnet import models
from cotnet.models.table import TABLE, build, count_multiply_adds, count_parameters, markdown, row

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
GOLDEN = read("models.json.gz")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [(name, int(side)) for name in GOLDEN for side in GOLDEN[name]["macs"]])
def test_counts_equal_the_reference(name, side):
    model = build(name, side)
    assert count_parameters(model) == GOLDEN[name]["parameters"]
    assert count_multiply_adds(model, side) == GOLDEN[name]["macs"][str(side)]


def test_counts_of_baselines():
    """As torchvision documents its own (convolutions and linear layers only)."""
    for name in ("resnet50", "resnext50_32x4d"):
        documented = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta
        model = build(name, 224)
        assert count_parameters(model) == documented["num_params"]
        assert count_multiply_adds(model, 224) / 1e9 == pytest.approx(documented["_ops"], abs=2e-3)
        accuracy = documented["_metrics"]["ImageNet-1K"]
        assert TABLE[name, 224].top1 == pytest.approx(accuracy["acc@1"], abs=0.05)
        assert TABLE[name, 224].top5 == pytest.approx(accuracy["acc@5"], abs=0.05)


def test_every_backbone_has_a_row():
    assert {name for name, _ in TABLE} == {name for name in models.__all__ if not name.endswith("_model")}


@pytest.mark.slow
def test_deviations_are_printed():
    assert row("se_cotnetd_152", 224)[-1] == "multiply-adds 12.90, published 17.0; 17.0 is the count at 256 px"
    assert row("cotnext50_2x48d", 224)[-1] == "parameters 30.05, published 30.1"
    assert row("pvt_tiny", 224)[-1] == ""


@pytest.mark.slow
def test_docs_hold_the_table():
    assert markdown() in DOCS.read_text(), "python -m cotnet.models gives another table: put it into docs/models.md"
