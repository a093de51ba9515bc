"""Attention runs in torch's fused kernels: with the unfused one forbidden it still runs, and gives the same."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from cotnet import models


@pytest.mark.parametrize("name", ["botnet50", "pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"])
def test_inference_on_the_cpu(name):
    torch.manual_seed(0)
    model, images = getattr(models, name)(num_classes=5).eval(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        with sdpa_kernel(SDPBackend.MATH):
            expected = model(images)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("name", ["botnet50", "pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"])
def test_training_on_a_gpu(name):
    model = getattr(models, name)(num_classes=5).cuda().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(backends):
        loss = model(images).float().square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
