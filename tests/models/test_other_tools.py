"""Our backbones in torch's tools and in timm, with timm's own code."""

import copy
import re
from pathlib import Path

import pytest
import timm
import torch
from captum.attr import LayerGradCam
from timm.models import FeatureHookNet, load_checkpoint
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor

from cotnet import models
from cotnet.models.botnet import BoTAttention
from cotnet.models.weights import classifier_keys
from cotnet.ops import local_aggregation

FAMILIES = {"cotnet_small": "layer2", "pvt_tiny": "block2", "pvt_v2_b0": "block2"}
MORE = {"cotnext50_2x48d": "layer2", "botnet50": "layer4", "se_cotnetd_50": "layer3", "resnest50": "layer3"}
MORE |= {f"{name}50": "layer3" for name in ("stand_alone", "lr_net", "halonet", "aa_resnet", "lambda_resnet", "sknet")}


pytestmark = pytest.mark.usefixtures("registered")


def made(name, **settings):
    torch.manual_seed(0)
    return getattr(models, name)(num_classes=5, **settings).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "stage"), [*FAMILIES.items(), *(pytest.param(*pair, marks=pytest.mark.long) for pair in MORE.items())]
)
def test_hooks_and_torch_fx_see_the_stages(name, stage):
    model, images = made(name), torch.randn(2, 3, 64, 64)
    expected = model(images)
    seen = {}
    model.get_submodule(stage).register_forward_hook(lambda module, given, output: seen.update(output=output))
    assert torch.equal(model(images), expected)
    (found,) = create_feature_extractor(made(name), [stage])(images).values()
    assert torch.equal(found, seen["output"])


def test_hooks_fire_where_blocks_are_recomputed():
    model, seen = made("cotnet_small", width=8).train(), []
    model.set_grad_checkpointing()
    model.layer4.register_full_backward_hook(lambda module, into, out: seen.append(out[0].shape))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert seen == [torch.Size([2, 256, 4, 4])]


class LowRank(nn.Module):
    """LoRA's form: a frozen convolution and a trained product of two small ones."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = (
            nn.Conv2d(base.in_channels, 2, 1, bias=False),
            nn.Conv2d(2, base.out_channels, 1, bias=False),
        )

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_the_embedding_of_cot_may_be_hooked_pruned_and_replaced(groups):
    layer = models.cotnet.CoTLayer(32, groups=groups, key_groups=4).eval()
    x = torch.randn(2, 32, 6, 6)
    expected, first = layer(x), layer.embed[0]
    seen = []
    handle = first.register_forward_hook(lambda module, given, output: seen.append(output.shape))
    assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert seen == [torch.Size([2, 16, 6, 6])]
    halved = copy.deepcopy(layer)
    halved.embed[0].weight /= 2
    parametrize.register_parametrization(layer.embed[0], "weight", Half())
    assert_close(layer(x), halved(x), rtol=1e-5, atol=1e-5)
    parametrize.remove_parametrizations(layer.embed[0], "weight", leave_parametrized=False)
    zeroed = copy.deepcopy(layer)
    zeroed.embed[0].weight.zero_()
    prune.random_unstructured(layer.embed[0], "weight", 1.0)
    assert_close(layer(x), zeroed(x), rtol=1e-5, atol=1e-5)
    prune.remove(layer.embed[0], "weight")
    wrapped = copy.deepcopy(layer)  # as tools that wrap a module's forward do it
    wrapped.embed[0].forward = lambda x: torch.zeros(len(x), 16, 6, 6)
    assert_close(wrapped(x), zeroed(x), rtol=1e-5, atol=1e-5)
    if groups == 1:
        adapted = LowRank(copy.deepcopy(first))
        product = torch.einsum("orhw,rihw->oihw", adapted.up.weight, adapted.down.weight)
        layer.embed[0].weight.copy_(adapted.base.weight + product)
        zeroed.embed[0] = adapted
        assert_close(zeroed(x), layer(x), rtol=1e-5, atol=1e-5)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_gradients_of_single_samples():
    """torch.func's vmap over samples equals one backward pass for each."""
    model = made("cotnet_small", width=8).double()
    images, targets = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 3, 1])
    values = dict(model.named_parameters())

    def loss(parameters, image, target):
        return nn.functional.cross_entropy(functional_call(model, parameters, image[None]), target[None])

    found = vmap(grad(loss), (None, 0, 0))(values, images, targets)
    for number in range(3):
        each = torch.autograd.grad(loss(values, images[number], targets[number]), list(values.values()))
        for one, other in zip(found.values(), each, strict=True):
            assert_close(one[number], other, rtol=1e-8, atol=1e-10)


def test_jvp_of_the_operator():
    """torch.func's forward mode against central differences."""
    torch.manual_seed(0)
    shapes = (2, 8, 4, 5), (2, 2, 9, 4, 5)
    inputs, directions = (tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes) for _ in range(2))
    _, found = jvp(local_aggregation, inputs, directions)
    ahead, behind = (
        local_aggregation(*(x + sign * 1e-6 * d for x, d in zip(inputs, directions, strict=True))) for sign in (1, -1)
    )
    assert_close(found, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-7)


def test_jvp_of_attention():
    """On a CPU torch's other kernels of attention have none."""
    torch.manual_seed(0)
    layer = BoTAttention(16, heads=2, side=4).double()
    x, direction = (torch.randn(2, 16, 4, 5, dtype=torch.float64) for _ in range(2))
    with sdpa_kernel(SDPBackend.MATH):
        _, found = jvp(layer, (x,), (direction,))
    ahead, behind = (layer(x + step * direction) for step in (1e-6, -1e-6))
    assert_close(found, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


def test_timm_builds_and_reads_our_models(registered, tmp_path):
    assert {"cotnet50", "botnet50", "pvt_tiny", "halonet50"} <= set(registered)
    assert not {"resnet50", "pvt_v2_b0"} & set(registered)  # timm's own
    model = timm.create_model("cotnet_small", num_classes=5, drop_rate=0.1, drop_path_rate=0.2, in_chans=1, width=8)
    assert model.spec == (
        "cotnet_small",
        {"num_classes": 5, "dropout": 0.1, "drop_path": 0.2, "in_channels": 1, "width": 8},
    )
    averaged = {key: torch.full_like(x, 2) for key, x in model.state_dict().items()}
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": averaged}, tmp_path / "both.pth")
    load_checkpoint(model, str(tmp_path / "both.pth"), use_ema=True)
    assert all(torch.equal(x, averaged[key]) for key, x in model.state_dict().items())
    with pytest.raises(ValueError, match="cotnet50 has no weights to download"):
        timm.create_model("cotnet50", pretrained=True)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_timms_protocol(name):
    model, images = made(name), torch.randn(2, 3, 64, 64)
    logits, features = model(images), model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.forward_head(features), logits)
    assert torch.equal(model.get_classifier()(pooled), logits)
    assert pooled.shape == (2, model.num_features) == (2, model.head_hidden_size)
    assert (model.num_classes, model.pretrained_cfg["num_classes"]) == (5, 5)
    last, maps = model.forward_intermediates(images, indices=[-3, -1])
    assert torch.equal(last, features)
    assert all(torch.equal(one, other) for one, other in zip(maps, model.forward_stages(images)[1::2], strict=True))
    rows = model.feature_info
    assert [row["num_chs"] for row in rows[-4:]] == [*model.stage_channels]
    assert classifier_keys(model) == [f"{model.pretrained_cfg['classifier']}.{key}" for key in ("weight", "bias")]
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)


@torch.no_grad()
def test_timms_feature_extractors():
    model, images = made("cotnet_small", width=8), torch.randn(2, 3, 32, 32)
    maps = model.forward_stages(images)
    hooked = FeatureHookNet(copy.deepcopy(model), out_indices=(1, 4))
    assert all(torch.equal(one, other) for one, other in zip(hooked(images), (maps[0], maps[3]), strict=True))
    torch.manual_seed(0)
    getter = timm.create_model("cotnet_small", width=8, features_only=True, out_indices=(2, 3))
    assert (getter.feature_info.channels(), getter.feature_info.reduction()) == ([64, 128], [4, 8])
    getter.model.load_state_dict(model.state_dict(), strict=False)
    assert all(torch.equal(one, other) for one, other in zip(getter.eval()(images), maps[1:3], strict=True))


def test_a_model_without_classes_has_no_unused_parameter():
    for name in FAMILIES:
        model = getattr(models, name)(num_classes=0)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        assert [key for key, x in model.named_parameters() if x.grad is None] == []


def test_the_classifier_of_timms_models():
    """Where the classifier is not the last linear layer, or there are two."""
    with torch.device("meta"):
        distilled = timm.create_model("deit_tiny_distilled_patch16_224")
        early = timm.create_model("mobilenetv3_small_050")
    assert classifier_keys(distilled) == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert classifier_keys(early) == ["classifier.weight", "classifier.bias"]


def test_captum_sees_a_stage():
    """Grad-CAM of a stage is the mean gradient of each channel times its activation, summed over the channels."""
    model, images = made("cotnet_small", width=8), torch.randn(1, 3, 32, 32)
    found = LayerGradCam(model, model.layer3).attribute(images, target=2)
    maps = model.forward_stages(images)[2].detach().requires_grad_()
    model.forward_head(model.layer4(maps))[0, 2].backward()
    expected = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True)
    assert_close(found, expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@torch.no_grad()
def test_the_example_of_the_docs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (example,) = re.findall(r"```python\n(import timm.*?)```", page, re.DOTALL)
    names = {"images": torch.randn(2, 3, 64, 64)}
    exec(example, names)
    assert [one.shape[1] for one in names["pyramid"]] == [512, 1024, 2048]
    assert names["pooled"].shape == (2, 2048)
    assert [one.shape[1] for one in names["maps"]] == [2048]
    assert names["dense"].feature_info.reduction() == [2, 4, 8, 16, 16]
    assert [tuple(one.shape[1:]) for one in names["both"]] == [(64, 32, 32), (2048, 2, 2)]
    assert names["model"].train().layer1[0].bn3.training is False
    assert capsys.readouterr().out.startswith(
        "ModelSpec(name='cotnet50', settings={'num_classes': 10, 'drop_path': 0.1"
    )
