import math

import pytest
import torch
from drawn import batch, loss_of, segmenter, train, without_gradient
from operator_names import OperatorNames
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from cotnet import models
from cotnet.dense.semantic import class_map
from cotnet.models.external import torchvision_model


def test_sizes_of_the_published_network():
    """PVT-Tiny with 150 classes counts 17.0 M parameters in the paper (table 5): 16.98 M here."""
    with torch.device("meta"):
        model = segmenter(models.pvt_tiny(), 150, channels=256, head_channels=128)
    assert sum(x.numel() for x in model.parameters()) == 16_980_886


@pytest.mark.parametrize(
    "make", [lambda: models.cotnet_small(width=8), lambda: torchvision_model(model_name="resnet18")]
)
def test_logits_and_gradients(make):
    torch.manual_seed(0)
    model = segmenter(make())
    images, targets = batch([1, 2])
    loss_of(model, images, targets).backward()
    assert without_gradient(model) == []
    sizes = [(40, 50), (64, 33)]
    with torch.no_grad():
        found = model.eval()([image[:, :h, :w] for image, (h, w) in zip(images, sizes, strict=True)])
    assert [x["logits"].shape for x in found] == [(4, *size) for size in sizes]


def test_pixels_of_255_do_not_count():
    torch.manual_seed(0)
    model = segmenter(models.cotnet_small(width=8), dropout=0.0)
    images, targets = batch([0, 1], side=48)  # padded to 64: the rest does not count either
    for target in targets:
        target["classes"][:20] = 255
    logits = []
    model.classifier.register_forward_hook(lambda *given: logits.append(given[2]))
    loss = loss_of(model, images, targets)
    whole = F.interpolate(logits[0], size=(64, 64), mode="bilinear")[:, :, 20:48, :48]
    expected = F.cross_entropy(whole, torch.stack([target["classes"][20:] for target in targets]))
    torch.testing.assert_close(loss, expected)
    for target in targets:
        target["classes"][:] = 255
    assert loss_of(model, images, targets).item() == 0


@pytest.mark.parametrize("warn_only", [True, False])
def test_classes_of_a_large_image_take_little_memory_on_a_gpu(warn_only):
    """torch's resize with a deterministic gradient would take seven times the memory of the result."""
    torch.use_deterministic_algorithms(mode=True, warn_only=warn_only)
    try:
        with FakeTensorMode(), OperatorNames() as ran, torch.inference_mode():
            assert class_map(torch.empty(5, 8, 8, device="cuda"), (30, 41)).shape == (30, 41)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert "aten::upsample_bilinear2d" in ran.names
    assert "aten::_unsafe_index" not in ran.names


def test_levels_are_brought_to_the_finest_size():
    torch.manual_seed(0)
    model = segmenter(models.cotnet_small(width=8), norm="none").eval()
    assert model.backbone.strides == (2, 4, 8, 8)
    halvings = [sum(type(x).__name__ == "Upsample" for x in level) for level in model.levels]
    assert halvings == [int(math.log2(stride // 2)) for stride in model.backbone.strides]
    maps = list(model.backbone(torch.randn(1, 3, 64, 64)).values())
    features = model.levels[0](maps[0]) + model.levels[1](maps[1])
    expected = F.interpolate(F.relu(model.levels[1][0][0](maps[1])), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(features - model.levels[0](maps[0]), expected, atol=1e-6, rtol=1e-5)


def test_bf16():
    torch.manual_seed(0)
    model = segmenter(models.cotnet_small(width=8), norm="none")
    images, targets = batch([1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, images, targets)
    loss.backward()
    assert without_gradient(model) == []
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(model, images, targets).item(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    [
        lambda: models.cotnet_small(width=8),
        pytest.param(lambda: torchvision_model(model_name="resnet18"), marks=pytest.mark.long),
    ],
    ids=["cotnet_small", "torchvision's resnet18"],
)
def test_the_loss_falls(backbone):
    torch.manual_seed(0)
    before, after = train(segmenter(backbone()), 40, 3e-3)
    assert after < before / 3
