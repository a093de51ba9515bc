"""Parameter groups, rates by depth and optimizers that only a configuration names."""

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from cotnet import models, parts
from cotnet.config.build import build
from cotnet.config.compose import compose
from cotnet.engine.distributed import synchronised
from cotnet.engine.optimizer import layers, parameter_groups
from cotnet.engine.schedule import set_lr
from cotnet.errors import InputError
from cotnet.models.external import timm_model, torchvision_model


def names_by_layer(model: nn.Module) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[names[id(parameter)] for parameter in layer] for layer in layers(model)]
    assert sorted(name for layer in found for name in layer) == sorted(names.values())  # each once
    return found


def blocks(found: list[list[str]], length: int) -> list[str]:
    """What the names of each layer between stem and head have in common, `length` words of it."""
    for layer in found[1:-1]:
        assert len({tuple(name.split(".")[:length]) for name in layer}) == 1
    return [".".join(layer[0].split(".")[:length]) for layer in found[1:-1]]


def stages(*depths: int) -> list[str]:
    return [f"layer{i}.{j}" for i, depth in enumerate(depths, start=1) for j in range(depth)]


def test_layers_of_our_backbones():
    with torch.device("meta"):
        resnet, small = names_by_layer(models.se_cotnetd_50()), names_by_layer(models.cotnet_small())
        botnet, pvt = names_by_layer(models.botnet_s1_50()), names_by_layer(models.pvt_tiny())
    assert blocks(resnet, 2) == blocks(botnet, 2) == stages(3, 4, 6, 3)
    assert blocks(small, 2) == stages(1, 2, 2, 1)
    assert resnet[0][0] == "conv1.0.weight"
    assert resnet[0][-1] == "bn1.bias"
    assert resnet[-1] == ["fc.weight", "fc.bias"]
    expected = [f"block{i}.{j}" if j >= 0 else f"patch_embed{i}" for i in range(1, 5) for j in (-1, 0, 1)]
    found = [".".join(layer[0].split(".")[:2]) for layer in pvt[1:-1]]
    assert [name.removesuffix(".proj") for name in found] == expected[1:]
    assert set(pvt[0]) > {"pos_embed1", "pos_embed4", "cls_token", "patch_embed1.proj.weight"}
    assert pvt[-1] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_layers_of_other_peoples_backbones():
    with torch.device("meta"):
        vit = names_by_layer(torchvision_model(model_name="vit_b_32"))
        convnext = names_by_layer(torchvision_model(model_name="convnext_tiny"))
        deit = names_by_layer(timm_model(model_name="deit_tiny_patch16_224"))
    assert blocks(vit, 3) == [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    assert vit[0] == ["class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"]
    assert blocks(deit, 2) == [f"blocks.{i}" for i in range(12)]
    assert deit[-1] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert len(convnext) == 2 + 18 + 3  # three strided layers lie between the stages
    assert convnext[4][0] == "features.2.0.weight"


def test_rates_fall_towards_the_stem_and_1d_parameters_do_not_decay():
    model = models.cotnet_small(num_classes=4)
    groups = parameter_groups(model, 0.05, 0.5)
    optimizer = torch.optim.SGD(groups, lr=9.0)
    set_lr(optimizer, 0.8)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["fc.weight"] == (0.8, 0.05)
    assert found["fc.bias"] == (0.8, 0.0)
    assert found["layer4.0.conv1.weight"] == (0.4, 0.05)
    assert found["layer1.0.conv1.weight"] == (0.8 / 2**6, 0.05)
    assert found["conv1.weight"] == (0.8 / 2**7, 0.05)
    assert found["bn1.weight"] == (0.8 / 2**7, 0.0)


def undecayed(model: nn.Module, groups: list[dict[str, Any]]) -> set[str]:
    """Names of the parameters without weight decay; each parameter is in one group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert Counter(names[p] for group in groups for p in group["params"]) == Counter(names.values())
    return {names[p] for group in groups for p in group["params"] if group["weight_decay"] == 0}


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_pvt_decays_its_position_tables_and_not_its_class_token(layer_decay):
    with torch.device("meta"):
        model = models.pvt_tiny()
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert undecayed(model, parameter_groups(model, 0.05, layer_decay)) == vectors | {"cls_token"}


@pytest.mark.parametrize("layer_decay", [None, 0.75])
@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "hiera_tiny_224"]
)
def test_timm_models_say_what_is_not_decayed(name, layer_decay):
    """As timm's own grouping has it."""
    with torch.device("meta"):
        model = timm_model(model_name=name)
    theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert undecayed(model, parameter_groups(model, 0.05, layer_decay)) == undecayed(model, theirs)


def test_groups_of_a_model_that_exempts_nothing_keep_their_order():
    """A checkpoint's optimizer state goes by position."""
    model = models.cotnet_small(num_classes=4)
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    vectors = [name for name, parameter in model.named_parameters() if parameter.ndim == 1]
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05)
    assert [[names[p] for p in group["params"]] for group in groups] == [matrices, vectors]


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("torch.optim.NAdam", {"decoupled_weight_decay": True}),
        ("torch.optim.RMSprop", {"momentum": 0.9, "alpha": 0.9}),
        ("torch.optim.Adagrad", {}),
        ("timm.optim.Lamb", {"betas": [0.9, 0.99]}),
        ("timm.optim.Lion", {}),
    ],
)
def test_any_optimizer_by_its_name(target, settings):
    """A file of three lines in conf/optimizer is all that another optimizer wants."""
    config = compose("train", ["data=digits"])
    config["optimizer"] = {"_target_": target, "lr": 0.01, "weight_decay": 0.1, "layer_decay": 0.5, **settings}
    parts.settings_of({**config, "data": {**config["data"], "root": "nowhere"}})
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = parts.build_optimizer(config, parameter_groups(model, 0.1, 0.5))
    assert f"{type(optimizer).__module__}.{type(optimizer).__name__}".startswith(target.rpartition(".")[0])
    set_lr(optimizer, 0.02)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.01, 0.02]
    before = model(torch.ones(1, 3)).norm()
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    assert model(torch.ones(1, 3)).norm() < before


def test_without_timm_one_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"^optimizer\._target_ 'timm\.optim\.Lamb' .*; pip install 'cotnet\[timm\]'$"):
        build({"_target_": "timm.optim.Lamb"}, "optimizer", params=[])


def test_synchronised_batchnorm_keeps_keys_parameters_and_evaluation():
    model, images = models.cotnet_small(num_classes=4).eval(), torch.rand(2, 3, 32, 32)
    keys, parameters, before = list(model.state_dict()), list(model.parameters()), model(images)
    converted = synchronised(model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) > 10
    assert list(converted.state_dict()) == keys
    assert all(a is b for a, b in zip(converted.parameters(), parameters, strict=True))
    assert torch.equal(converted(images), before)


def test_synchronised_refuses_a_batchnorm_that_it_would_strip():
    with pytest.raises(InputError, match=r"^train\.sync_bn=true does not know bn1, a BatchNormAct2d; "):
        synchronised(timm_model(model_name="efficientnet_lite0"))
