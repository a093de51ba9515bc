"""Gradients of whole networks on the GPU against float64 on the CPU (cuDNN has had wrong ones)."""

import copy

import pytest
import torch

from cotnet import models

SIZE = 96


def gradients(model, device, dtype, layout=torch.contiguous_format):
    """Of every parameter, in float64 on the CPU; on the same images."""
    torch.manual_seed(1)
    images, targets = torch.randn(8, 3, SIZE, SIZE, dtype=torch.float64), torch.arange(8)
    net = copy.deepcopy(model).to(device, dtype, memory_format=layout)
    logits = net(images.to(device, dtype, memory_format=layout))
    torch.nn.functional.cross_entropy(logits, targets.to(device)).backward()
    return {name: parameter.grad.double().cpu() for name, parameter in net.named_parameters()}


def worst_layers(found, exact):
    """Relative errors of a parameter's gradient, the five largest first. Below 1e-6 of the largest gradient of a model
    (biases before a norm) nothing is left to compare."""
    least = 1e-6 * max(float(gradient.norm()) for gradient in exact.values())
    errors = {
        name: float((found[name] - gradient).norm() / gradient.norm())
        for name, gradient in exact.items()
        if gradient.norm() > least
    }
    return sorted(errors.items(), key=lambda item: -item[1])[:5]


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["cotnet50", "resnet50"])
def test_gradients_are_those_of_the_cpu(name, layout, monkeypatch):
    """As far from float64 as float32 on the CPU, up to a factor of ten for another order of sums."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=8)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # a block's last norm starts at 0: no gradients before it
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    exact = gradients(model, "cpu", torch.float64)
    usual = worst_layers(gradients(model, "cpu", torch.float32), exact)
    found = worst_layers(gradients(model, "cuda", torch.float32, layout), exact)
    assert found[0][1] < 10 * usual[0][1], f"on the GPU {found}, on the CPU {usual}"


def test_worst_layers_are_found():
    exact = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0]), "c": torch.tensor([1e-9])}
    found = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.5]), "c": torch.tensor([1.0])}
    assert worst_layers(found, exact) == [("b", 0.5), ("a", pytest.approx(0.1))]
