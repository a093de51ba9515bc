"""Baselines: with the same weights, the same logits as torchvision's and timm's models."""

import pytest
import timm
import torch
import torchvision
from reference import fill
from torch.testing import assert_close

from cotnet import models
from cotnet.errors import InputError
from cotnet.models.weights import classifier_keys, load_weights

pytestmark = pytest.mark.slow

TORCHVISION = {name: name for name in ("resnet50", "resnet101", "resnet152", "resnext50_32x4d")}
TIMM = {
    "resnext101_32x4d": ("resnext101_32x4d", {}),
    "resnet50d": ("resnet50d", {}),
    "resnet101d": ("resnet101d", {}),
    "seresnet50": ("seresnet50", {}),
    "seresnet101": ("seresnet101", {}),
    "seresnet50d": ("resnet50d", {"block_args": {"attn_layer": "se"}}),
    "resnest50": ("resnest50d", {}),
    "resnest101": ("resnest101e", {}),
}
SHALLOW = ("resnet50", "resnet50d", "resnest50")


def theirs_of(name):
    if name in TORCHVISION:
        return torchvision.models.get_model(TORCHVISION[name], weights=None)
    their_name, settings = TIMM[name]
    return timm.create_model(their_name, **settings)


def shapes(model):
    return [(key, tuple(value.shape)) for key, value in model.state_dict().items()]


@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_same_keys_in_the_same_order(name):
    with torch.device("meta"):
        assert shapes(getattr(models, name)()) == shapes(theirs_of(name))


@pytest.mark.parametrize(
    "name", [name if name in SHALLOW else pytest.param(name, marks=pytest.mark.long) for name in [*TORCHVISION, *TIMM]]
)
def test_same_logits(name):
    ours, theirs = getattr(models, name)().double(), fill(theirs_of(name).double())
    ours.load_state_dict(theirs.state_dict())
    for size in ((64, 64), (65, 97)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=1e-9)
            assert_close(ours.train()(images), theirs.train()(images), rtol=0, atol=1e-9)
        theirs.load_state_dict(ours.state_dict())


class Blurred(torch.nn.Module):
    """A convolution behind a binomial filter, its taps summed one by one."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution

    def forward(self, x):
        padded, (height, width) = torch.nn.functional.pad(x, (1, 1, 1, 1)), x.shape[2:]
        taps = [(i, j, (1, 2, 1)[i] * (1, 2, 1)[j] / 16) for i in range(3) for j in range(3)]
        return self.convolution(sum(tap * padded[:, :, i : i + height, j : j + width] for i, j, tap in taps))


def test_blurpool_is_a_blur_before_strided_convolutions():
    """FFCV's rule: every convolution with a stride and at least 16 input channels, so not the stem's."""
    theirs = fill(torchvision.models.resnet50().double())
    ours = models.resnet50_blurpool().double()
    ours.load_state_dict(theirs.state_dict())
    for name, module in list(theirs.named_modules()):
        if isinstance(module, torch.nn.Conv2d) and module.stride[0] > 1 and module.in_channels >= 16:
            parent, _, key = name.rpartition(".")
            setattr(theirs.get_submodule(parent), key, Blurred(module))
    images = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=1e-9)


def test_torchvision_by_name():
    for name in ("efficientnet_b0", "vit_b_32", "swin_t", "convnext_tiny", "googlenet"):
        with torch.device("meta"):
            model = models.torchvision_model(model_name=name, num_classes=7)
        assert shapes(model)[-1][1] == (7,)
    model = models.torchvision_model(model_name="mobilenet_v3_small", num_classes=7, dropout=0.4)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert model.classifier[2].p == 0.4


def test_timm_by_name():
    model = models.timm_model(model_name="resnet18", num_classes=7, drop_rate=0.2)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert model.drop_rate == 0.2


@pytest.mark.parametrize("constructor", [models.torchvision_model, models.timm_model])
@pytest.mark.parametrize("name", ["resnet5000", "fcn_resnet50", "hf-hub:a/b", "local-dir:x", ""])
def test_unknown_names_are_refused(constructor, name):
    with pytest.raises(InputError, match="has no"):
        constructor(model_name=name)


@pytest.mark.parametrize("constructor", [models.torchvision_model, models.timm_model])
def test_unknown_settings_are_refused(constructor):
    with pytest.raises(InputError, match="does not take"):
        constructor(model_name="resnet18", depth=3)


@pytest.mark.parametrize(
    "build",
    [
        lambda classes: models.torchvision_model(model_name="mobilenet_v3_small", num_classes=classes),
        lambda classes: models.torchvision_model(model_name="squeezenet1_1", num_classes=classes),
        lambda classes: models.timm_model(model_name="resnet18", num_classes=classes),
    ],
)
def test_their_weights_load_with_another_head(build, tmp_path):
    source, model = build(5), build(3)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"5 classes, the model has 3; use backbone\.head=reset"):
        load_weights(model, tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth", head="reset")
    theirs = source.state_dict()
    same = [key for key, value in model.state_dict().items() if torch.equal(value, theirs[key])]
    assert set(theirs) - set(same) == set(classifier_keys(model))


def test_a_model_without_a_classifier_has_none_to_reset(tmp_path):
    body = torch.nn.BatchNorm2d(2)
    torch.save({"state_dict": body.state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="head=reset: this model has no classifier to leave out; set head=keep"):
        load_weights(body, tmp_path / "weights.pth", head="reset")


@pytest.mark.long
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_classifier_of_every_family(library):
    """The classifier's keys are those whose shapes change with the number of classes: of all of torchvision's models
    but the larger RegNets, and of the first of each of timm's modules."""
    build, names = {
        "torchvision": (models.torchvision_model, torchvision.models.list_models(module=torchvision.models)),
        "timm": (models.timm_model, [timm.list_models(module=module)[0] for module in timm.list_modules()]),
    }[library]
    wrong, seen = {}, 0
    for name in names:
        if name.startswith("regnet") and name not in ("regnet_x_400mf", "regnet_y_400mf"):
            continue  # one class of networks, which the meta device cannot build
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            three, five = (build(model_name=name, num_classes=classes) for classes in (3, 5))
        seen, other = seen + 1, five.state_dict()
        changed = {key for key, value in three.state_dict().items() if value.shape != other[key].shape}
        if changed and changed != set(classifier_keys(three)):
            wrong[name] = sorted(changed ^ set(classifier_keys(three)))
    assert wrong == {}
    assert seen > 60
