"""The zoo's table: counts equal to the reference, docs/models.md up to date."""

from pathlib import Path

import pytest
import torchvision
from reference import read

from cotnet import models
from cotnet.models.table import TABLE, build, count_multiply_adds, count_parameters, markdown, native_evaluation, row

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


def test_native_evaluation_is_that_of_the_published_figures():
    """The authors' code gives SE-CoTNetD-152 its own size, 256 px, and a second one for its weights of 320 px."""
    assert native_evaluation("se_cotnetd_152") == native_evaluation("se_cotnetd_152", 224) == (256, 0.888)
    assert native_evaluation("se_cotnetd_152", 320) == (320, 0.909)
    assert native_evaluation("cotnet50") == native_evaluation("pvt_tiny") == (224, 0.875)
    assert native_evaluation("cotnet_small") is native_evaluation("timm_model") is None


def test_every_backbone_has_a_row():
    assert {name for name, _ in TABLE} == {name for name in models.__all__ if not name.endswith("_model")}


@pytest.mark.slow
def test_deviations_are_printed():
    assert row("se_cotnetd_152", 256)[3:] == (
        *("16.85", "84.0", "97.0"),
        *("Li et al. 2021, 350 epochs", "multiply-adds 16.85, published 17.0"),
    )
    assert row("se_cotnetd_152", 224)[4:] == ("–", "–", "–", "")
    assert row("cotnext50_2x48d", 224)[-1] == "parameters 30.05, published 30.1"
    assert row("pvt_tiny", 224)[-1] == ""


@pytest.mark.long
@pytest.mark.slow
def test_docs_hold_the_table():
    assert markdown() in DOCS.read_text(), "python -m cotnet.models gives another table: put it into docs/models.md"
