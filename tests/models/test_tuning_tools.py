"""LoRA by peft, heat maps by grad-cam and QAT by torch, on our networks: with the packages' own code."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from cotnet import models

pytestmark = pytest.mark.slow


def made():
    torch.manual_seed(0)
    model = models.cotnet_small(width=8, num_classes=5).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):  # zero in a fresh network, whose branches would not be seen
            torch.nn.init.constant_(parameter, 0.5)
    return model, torch.randn(2, 3, 32, 32, dtype=torch.float64)


def scaled(maps):
    """Each map from 0 to 1, as the package does it before and after it enlarges them."""
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / maps.amax((2, 3), keepdim=True)


def test_peft_tunes_the_embedding_of_cot():
    """At the start the logits are the network's own; after a change of the adapters, those of the merged network."""
    from peft import LoraConfig, get_peft_model  # imports transformers: seconds

    model, images = made()
    expected = model(images)
    config = LoraConfig(r=2, target_modules=r".*conv2\.embed\.0", modules_to_save=["fc"])
    tuned = get_peft_model(copy.deepcopy(model), config)
    assert_close(tuned(images), expected)
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    assert sum("lora_" in name for name in trained) == 2 * 6  # two small convolutions in each of six blocks
    for name, parameter in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned(images).sum().backward()
    assert all(p.grad is not None for p in trained.values())
    changed = tuned(images)
    assert (changed - expected).abs().max() > 1e-4
    assert_close(tuned.merge_and_unload()(images), changed)


def test_grad_cams_map_is_the_one_of_the_paper():
    """Selvaraju et al. (2017), equation 2: mean gradients weigh the maps; the package scales the result to 0..1."""
    from pytorch_grad_cam import GradCAM  # imports OpenCV
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = made()
    maps = model.forward_stages(images)[2].detach().requires_grad_()
    model.forward_head(model.layer4(maps))[:, 2].sum().backward()
    expected = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach()
    expected = scaled(F.interpolate(scaled(expected), size=32, mode="bilinear"))[:, 0].float()
    with GradCAM(model=model, target_layers=[model.layer3]) as cam:
        found = cam(input_tensor=images, targets=[ClassifierOutputTarget(2)] * 2)
    assert expected.std() > 0.05
    assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


def test_quantization_aware_training_sees_the_embedding_of_cot():
    """torch's QAT replaces the convolutions: with its rounding off the logits are the network's own; with it on, the
    embedding of CoT alone changes them, too."""
    quantization = pytest.importorskip("torch.ao.quantization", reason="newer versions of torch have no eager-mode QAT")
    model, images = made()
    model, images = model.float().train(), images.float()
    expected = copy.deepcopy(model)(images)
    prepared = copy.deepcopy(model)
    for block in (block for stage in prepared.stages for block in prepared.get_submodule(stage)):
        block.conv2.embed[0].qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.prepare_qat(prepared, inplace=True)
    first = prepared.layer1[0].conv2.embed[0]
    assert type(first) is torch.ao.nn.qat.Conv2d
    rounded = copy.deepcopy(prepared)(images)
    prepared.apply(quantization.disable_fake_quant)
    assert_close(prepared(images), expected, rtol=1e-4, atol=1e-5)
    assert (rounded - expected).abs().max() > 1e-3
    rounded.sum().backward()
    prepared.apply(quantization.enable_fake_quant)
    prepared(images).sum().backward()
    assert first.weight.grad.abs().max() > 0
    assert first.activation_post_process.activation_post_process.max_val > 0  # its observer has seen the output
