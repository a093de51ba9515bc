"""Gradients of whole networks on the GPU against float64 on the CPU (cuDNN has had wrong ones)."""

import pytest
import torch

from cotnet.engine.precision import Precision
from cotnet.gpu_check.exactness import GRADIENT_BOUNDS, gradients, relative_errors

CPU = torch.device("cpu")


def compared(name, batch, size, precision):
    """The relative error of each gradient, and the names of all."""
    precision.set_up_process()
    exact = gradients(name, batch, size, precision=Precision(name="fp64", device=CPU))
    return relative_errors(gradients(name, batch, size, precision=precision), exact), list(exact)


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["cotnet50", "resnet50"])
def test_gradients_are_those_of_the_cpu(name, channels_last, monkeypatch):
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        monkeypatch.setattr(backend, "allow_tf32", False)
    precision = Precision(name="fp32", device=torch.device("cuda", 0), channels_last=channels_last)
    errors, _ = compared(name, 8, 96, precision)
    assert max(errors.values()) < GRADIENT_BOUNDS["fp32"], sorted(errors.items(), key=lambda item: -item[1])[:5]


def test_the_gradients_of_every_layer_are_compared():
    """A block's last norm starts at 0: unless it is changed, the layers before it have no gradient and are left out. So
    are, rightly, a norm's weight and two biases whose effect the next norm takes away."""
    errors, names = compared("cotnet_small", 8, 32, Precision(name="fp32", device=CPU))
    left_out = [name for name in names if name not in errors]
    assert all(name.endswith((".conv1x1.1.weight", ".embed.3.bias", ".se.0.bias")) for name in left_out), left_out
    assert sum(".embed." in name or ".key_embed." in name for name in errors) > 20
    assert 0 < max(errors.values()) < GRADIENT_BOUNDS["fp32"]
