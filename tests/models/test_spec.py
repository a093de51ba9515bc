import copy
import pickle

import pytest
import torch

from cotnet import models


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cotnet50", {"fusion": "static", "num_classes": 10}),
        ("pvt_tiny", {}),
        ("torchvision_model", {"model_name": "resnet18", "num_classes": 3}),
    ],
)
def test_a_model_can_be_built_again_from_its_spec(name, settings):
    with torch.device("meta"):
        model = getattr(models, name)(**settings)
        assert model.spec == (name, settings)
        again = getattr(models, model.spec.name)(**model.spec.settings)
    assert {k: x.shape for k, x in again.state_dict().items()} == {k: x.shape for k, x in model.state_dict().items()}
    assert copy.deepcopy(again).spec == pickle.loads(pickle.dumps(again)).spec == model.spec


def test_every_constructor_keeps_its_settings():
    for name in models.__all__:
        assert getattr(models, name).__wrapped__.__name__ == name
