"""What evaluate.py completes: the sizes of published weights, and of checkpoints of our own."""

import json
from typing import Any

import pytest
import torch

from cotnet import parts
from cotnet.commands import eval_model
from cotnet.config.compose import compose

pytestmark = pytest.mark.slow


def completed(*overrides: str, trained: dict[str, Any] | None = None) -> dict[str, Any]:
    """The evaluation of a file of published weights, or of a checkpoint of a run configured as `trained`."""
    config = compose("evaluate", ["checkpoint=x.pth", "data.root=x", *overrides])
    return eval_model.completed(config, {} if trained is None else {"config": json.dumps(trained)})


def sizes(config: dict[str, Any]) -> tuple[int, int, float]:
    data = config["data"]
    return data["image_size"], data["eval_size"], data["crop_ratio"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["backbone=cotnet50"], (224, 224, 0.875)),
        (["backbone=se_cotnetd_152"], (256, 256, 0.888)),
        (["backbone=se_cotnetd_152", "data.eval_size=320"], (320, 320, 0.909)),
        (["backbone=se_cotnetd_152", "data.eval_size=288"], (256, 288, 0.888)),
        (["backbone=se_cotnetd_152", "data.eval_size=224", "data.crop_ratio=0.875"], (256, 224, 0.875)),
        (["backbone=se_cotnetd_152", "data=digits"], (32, 32, 1.0)),
        (["backbone=resnest101"], (256, 256, 0.875)),
        (["backbone=cotnet_small"], (224, 224, 0.875)),
        (["backbone=timm", "backbone.model_name=resnet50"], (224, 224, 0.95)),
    ],
)
def test_published_weights_are_evaluated_at_the_size_of_their_figures(overrides, expected):
    assert sizes(completed(*overrides)) == expected


def test_own_checkpoint_keeps_the_size_it_was_configured_with():
    trained = compose("train", ["backbone=se_cotnetd_152", "data.root=x", "data.crop_ratio=0.95"])
    assert sizes(completed(trained=trained)) == (224, 224, 0.95)
    assert sizes(completed("data.eval_size=256", trained=trained)) == (224, 256, 0.95)
    assert sizes(completed("backbone=se_cotnetd_152", trained=trained)) == (224, 224, 0.95)


def preprocessing_lines(*overrides: str, trained: dict[str, Any] | None = None) -> list[str]:
    return eval_model.preprocessing_lines(completed(*overrides, trained=trained), trained)


def test_other_preprocessing_than_the_checkpoints_is_said():
    trained = compose("train", ["backbone=cotnet50", "data.root=x"])
    assert preprocessing_lines(trained=trained) == preprocessing_lines("backbone=cotnet50") == []
    assert preprocessing_lines("data.eval_size=[192,224]", trained=trained) == []
    found = preprocessing_lines("data.mean=[0.5,0.5,0.5]", "data.eval_size=256", trained=trained)
    assert found == [
        "data.eval_size=256 differs from the checkpoint's 224; leave it out, unless this is meant",
        "data.mean=[0.5,0.5,0.5] differs from the checkpoint's [0.485,0.456,0.406]; leave it out, unless this is meant",
    ]
    timm = ["backbone=timm", "backbone.model_name=vit_base_patch16_224"]
    assert preprocessing_lines(*timm) == [
        "preprocessing of vit_base_patch16_224: eval_size=224, crop_ratio=0.9, eval_interpolation=bicubic, "
        "eval_flip=false, mean=[0.5,0.5,0.5], std=[0.5,0.5,0.5]"
    ]


@pytest.mark.parametrize(("name", "side"), [("pvt_tiny", 224), ("botnet50", 224), ("botnet_s1_77", 320)])
def test_position_tables_of_published_weights_have_the_size_of_their_figures(name, side):
    config = completed(f"backbone={name}")
    with torch.device("meta"):
        model = parts.build_backbone(config["backbone"])
        native = parts.build_backbone({**config["backbone"], "image_size": side})
    shapes = {key: tensor.shape for key, tensor in native.state_dict().items()}
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes
