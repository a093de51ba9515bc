"""What dense heads need of a backbone: maps, tokens, the stem's map, frozen parts; in others' programs, too."""

import copy
import pickle
import re

import pytest
import timm
import torch
import torchvision
from nets import build, random_norms
from timm.models import FeatureHookNet
from timm.models._features import FeatureGetterNet
from torch import nn
from torch.nn.functional import interpolate
from torch.testing import assert_close
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from cotnet import models
from cotnet.models.freezing import freeze
from cotnet.models.layers import DropPath

FAMILIES = ("cotnet_small", "botnet50", "se_cotnetd_50", "resnest50", "pvt_tiny", "pvt_v2_b0")


pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0"])
def test_transformers_give_tokens_as_timms_do(name):
    """timm's ViT defines them: the maps' positions in rows, without the class token; the features stay as they are."""
    model = build(name).eval()
    images = torch.randn(2, 3, 64, 96)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=(64, 96)).eval()
    with torch.no_grad():
        for net in (model, vit):
            last, maps = net.forward_intermediates(images, indices=3)
            same, tokens = net.forward_intermediates(images, indices=3, output_fmt="NLC")
            assert torch.equal(last, same)
            for one, rows in zip(maps, tokens, strict=True):
                assert torch.equal(rows, one.flatten(2).transpose(1, 2))
                assert rows.shape == (2, one.shape[2] * one.shape[3], one.shape[1])
    for net, formats in ((model, "NCHW or NLC"), (build("cotnet_small"), "NCHW")):
        with pytest.raises(ValueError, match=f"^output_fmt=NLX is unknown here; give {formats}$"):
            net.forward_intermediates(images, output_fmt="NLX")


@torch.no_grad()
@pytest.mark.slow
def test_the_stems_map_comes_first():
    reductions = {"cotnet50": [2, 4, 8, 16, 32], "se_cotnetd_50": [2, 4, 8, 16, 32], "stand_alone50": [1, 4, 8, 16, 32]}
    reductions |= {"cotnet_small": [1, 2, 4, 8, 8], "pvt_tiny": [4, 8, 16, 32]}
    for name, expected in reductions.items():
        with torch.device("meta"):
            model = getattr(models, name)()
        assert [row["reduction"] for row in model.feature_info] == expected
        assert [row["module"] for row in model.feature_info][:1] == ["block1" if name == "pvt_tiny" else "act1"]
    model, images, seen = build("cotnet_small").eval(), torch.randn(2, 3, 32, 32), []
    model.act1.register_forward_hook(lambda module, given, output: seen.append(output.clone()))
    last, maps = model.forward_intermediates(images)
    stages = model.forward_stages(images)
    assert (torch.equal(maps[0], seen[0]), torch.equal(last, stages[-1]), len(maps)) == (True, True, 5)
    assert all(torch.equal(a, b) for a, b in zip(maps[1:], stages, strict=True))
    (chosen,) = model.forward_intermediates(images, indices=[-4], intermediates_only=True)
    assert torch.equal(chosen, stages[0])


@pytest.mark.parametrize("indices", [[7], [0, -6], 0, 6, []])
def test_maps_that_are_not_there_are_one_line(indices):
    words = (
        rf"^indices={re.escape(str(indices))}: the model has 5 maps; list some of 0 to 4, or give how many of the last$"
    )
    with pytest.raises(ValueError, match=words):
        build("cotnet_small").eval().forward_intermediates(torch.zeros(1, 3, 32, 32), indices=indices)


@pytest.mark.parametrize("name", ["cotnet_small", *[pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES[1:]]])
@pytest.mark.parametrize("indices", [(-1, 1), (0, 1)])
def test_maps_leave_no_parameter_without_a_gradient(name, indices):
    net = FeatureGetterNet(getattr(models, name)(num_classes=0), out_indices=indices)
    maps = net(torch.randn(2, 3, 64, 64))
    assert [x.shape[1] for x in maps] == net.feature_info.channels()
    sum(x.square().sum() for x in maps).backward()
    assert [key for key, x in net.named_parameters() if x.grad is None] == []
    twin = getattr(models, name)(num_classes=0).eval()
    twin.load_state_dict(net.model.state_dict(), strict=False)
    given = torch.randn(1, 3, 64, 64)
    expected = twin.forward_intermediates(given, indices=indices, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(net.eval()(given), expected, strict=True))
    (hooked,) = FeatureHookNet(twin, out_indices=(0,))(given)
    assert hooked.dim() == (3 if name.startswith("pvt") else 4)  # tokens or maps


@pytest.mark.parametrize(
    ("name", "parts", "frozen"),
    [
        ("cotnet_small", 2, ("conv1", "bn1", "layer1")),
        pytest.param("pvt_tiny", 1, ("patch_embed1", "pos_embed1"), marks=pytest.mark.slow),
        pytest.param("botnet50", 3, ("conv1", "bn1", "layer1", "layer2"), marks=pytest.mark.slow),
        pytest.param("pvt_v2_b0", 2, ("patch_embed1", "block1", "norm1"), marks=pytest.mark.slow),
    ],
)
def test_frozen_parts_stay_as_they_are(name, parts, frozen):
    model = getattr(models, name)(num_classes=5, drop_path=0.5)
    freeze(model, parts)
    for net in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = copy.deepcopy(net.state_dict())
        holder = nn.Sequential(net).eval().train()
        optimizer = torch.optim.SGD([x for x in net.parameters() if x.requires_grad], 0.1)
        holder(torch.randn(4, 3, 64, 64)).square().sum().backward()
        optimizer.step()
        changed = {key.split(".")[0] for key, x in net.state_dict().items() if not torch.equal(x, before[key])}
        assert changed == {key.split(".")[0] for key in before} - set(frozen)
        norms = [(key, m) for key, m in net.named_modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm | DropPath)]
        assert all(m.training is not key.startswith(frozen) for key, m in norms)


def test_what_cannot_be_frozen_is_one_line():
    with pytest.raises(ValueError, match=r"^parts=6: give 0 to 5, which are the stem and 4 stages$"):
        freeze(build("cotnet_small"), 6)
    with pytest.raises(ValueError, match=r"^Linear is not one of this project's backbones; freeze it with"):
        freeze(nn.Linear(1, 1))


@pytest.mark.slow
def test_torchvisions_deeplab_is_ours_on_the_same_weights():
    """Its own network, of stride 8, and its head on ours."""
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)
    theirs = random_norms(theirs)
    body = models.resnet50(num_classes=0, output_stride=8).double()
    body.load_state_dict(theirs.backbone.state_dict())
    ours = nn.ModuleDict({"body": IntermediateLayerGetter(body, {"layer4": "out"}), "head": DeepLabHead(2048, 3)})
    ours["head"].load_state_dict(theirs.classifier.state_dict())
    ours.double().eval()
    images = torch.randn(2, 3, 64, 96).double()
    with torch.no_grad():
        logits = interpolate(ours["head"](ours["body"](images)["out"]), size=(64, 96), mode="bilinear")
        assert_close(logits, theirs(images)["out"], rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["DeepLabV3", pytest.param("Unet", marks=pytest.mark.long)])
def test_segmentation_models_trains_ours(architecture):
    """Its encoders are timm's features: here they are the maps of `forward_intermediates`, the stem's first."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    dilated = {"encoder_output_stride": 16} if architecture == "DeepLabV3" else {}
    net = getattr(smp, architecture)("tu-cotnet50", encoder_weights=None, classes=3, **dilated)
    images, body = torch.randn(2, 3, 64, 96), models.cotnet50(num_classes=0, output_stride=16 if dilated else 32)
    assert net.encoder.model.feature_info.reduction() == [2, 4, 8, 16, 16 if dilated else 32]
    loss = smp.losses.DiceLoss("multiclass")(net(images), torch.randint(3, (2, 64, 96)))
    loss.backward()
    assert [key for key, x in net.named_parameters() if x.grad is None] == []
    body.load_state_dict(net.encoder.model.model.state_dict())
    with torch.no_grad():
        maps = body.eval().forward_intermediates(images, intermediates_only=True)
        logits = net.eval().segmentation_head(net.decoder([images, *maps]))
        assert (logits.shape, torch.equal(net(images), logits)) == ((2, 3, 64, 96), True)
