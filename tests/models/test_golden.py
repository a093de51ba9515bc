"""Equal to the authors' code: counts, keys, logits, gradients, single layers."""

import numpy as np
import pytest
import torch
from reference import GOLDEN, fill, fill_sha256, image, noise, read, uniform
from torch.nn import functional as F

from cotnet import models
from cotnet.models.contextual import CoTLayer

NAMES = [name for name in read("models.json.gz") if hasattr(models, name)]
QUICK = ("cotnet50", "pvt_tiny")


DEEP = ("101", "101_2x48d", "152", "medium", "large")


def slow_but(names):
    slow = {name: [pytest.mark.slow, pytest.mark.long][: 1 + name.endswith(DEEP)] for name in names}
    return [name if name in QUICK else pytest.param(name, marks=slow[name]) for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_ordered_keys(name):
    with torch.device("meta"):
        model = getattr(models, name)()
    expected = read("models.json.gz")[name]
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == expected["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]


def test_the_fill_is_the_reference_fill():
    assert fill_sha256(models.cotnet50()) == read("models.json.gz")["cotnet50"]["fill_sha256"]


@pytest.mark.parametrize("name", slow_but(NAMES))
def test_logits(name):
    model = fill(getattr(models, name)().double()).eval()
    with np.load(GOLDEN / "logits.npz") as expected, torch.no_grad():
        for count, height, width in ((2, 224, 224), (1, 193, 225)):
            logits = model(image(count, 3, height, width))
            np.testing.assert_allclose(logits.numpy(), expected[f"{name}_{height}x{width}"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", slow_but([name for name in NAMES if name in read("gradients.json.gz")]))
def test_gradients(name):
    expected = read("gradients.json.gz")[name]
    model = fill(getattr(models, name)().double()).train()
    loss = F.cross_entropy(model(image(2, 3, 64, 64)), torch.tensor([3, 871]))
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-10)
    assert [key for key, _ in model.named_parameters()] == list(expected["gradients"])
    for key, parameter in model.named_parameters():
        norm, projection = expected["gradients"][key]
        if key in expected["mathematically_zero"]:
            assert parameter.grad.norm() < 1e-9 * expected["total_grad_norm"], key
            continue
        direction = torch.from_numpy(uniform(f"grad.{key}", parameter.numel())).view_as(parameter)
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-6), key
        assert (parameter.grad * direction).sum().item() == pytest.approx(projection, abs=1e-6 * norm), key
    buffers = dict(model.named_buffers())
    for key, norm in expected["buffers"].items():
        assert buffers[key].norm().item() == pytest.approx(norm, rel=1e-9), key


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cotlayer_dim64", {"channels": 64}),
        ("cotlayer_dim128", {"channels": 128}),
        ("coxtlayer_dim96", {"channels": 96, "groups": 2, "key_groups": 8}),
    ],
)
def test_layers(name, settings):
    x = noise(f"layer.{name}.x", (2, settings["channels"], 9, 11), 2.0).requires_grad_()
    layer = fill(CoTLayer(**settings).double())
    with np.load(GOLDEN / "layers.npz") as expected:
        out = layer.eval()(x)
        np.testing.assert_allclose(out[:, ::4].detach(), expected[f"{name}_out_eval"], rtol=0, atol=1e-10)
        if f"{name}_grad_x_eval" in expected:
            out.backward(noise(f"layer.{name}.g", out.shape))
            np.testing.assert_allclose(x.grad[:, ::4], expected[f"{name}_grad_x_eval"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(layer.train()(x)[:, ::4].detach(), expected[f"{name}_out_train"], rtol=0, atol=1e-10)
