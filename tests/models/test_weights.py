"""Weights files of every kind, and files that want to run code."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cotnet.errors import InputError
from cotnet.models import cotnet_small, pvt_tiny, resnet50
from cotnet.models.weights import load_weights, save_weights, trusted_backbone


def small(seed, num_classes=3):
    torch.manual_seed(seed)
    return cotnet_small(num_classes=num_classes)


def assert_same_weights(model, other):
    assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


class Configuration(dict):
    """Stands for a configuration object of another library."""


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_every_format(tmp_path):
    source, state = small(0), small(0).state_dict()
    wrapped = OrderedDict((f"module._orig_mod.{key}", value) for key, value in state.items())
    files = {"a.pth": state, "b.pth.tar": {"state_dict": wrapped, "epoch": 3}, "c.pt": {"model": state}}
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_weights(source, tmp_path / "d.safetensors")
    with zipfile.ZipFile(tmp_path / "b.pth.tar") as archive:
        archive.extractall(tmp_path / "unzipped")
    for name in (*files, "legacy.pth", "d.safetensors", "unzipped", next((tmp_path / "unzipped").iterdir())):
        model = small(1)
        load_weights(model, tmp_path / name)
        assert_same_weights(model, source)


def test_averaged_or_raw_by_name(tmp_path):
    raw, averaged = small(0), small(1)
    averaged_model = torch.optim.swa_utils.AveragedModel(averaged, use_buffers=True)
    names = [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema")]
    for raw_name, averaged_name in names:
        torch.save({raw_name: raw.state_dict(), averaged_name: averaged_model.state_dict()}, tmp_path / "both.pt")
        for ema, expected in ((True, averaged), (False, raw)):
            model = small(2)
            load_weights(model, tmp_path / "both.pt", ema=ema)
            assert_same_weights(model, expected)
    torch.save({"state_dict_ema": averaged.state_dict()}, tmp_path / "averaged.pt")
    with pytest.raises(InputError, match="holds only averaged weights"):
        load_weights(small(2), tmp_path / "averaged.pt", ema=False)


def test_files_with_configuration_objects(tmp_path):
    source = small(0)
    node = Configuration(model="cotnet50", nested=Configuration(depth=[1, 2]))
    node.attribute = {"frozen": True}
    content = {"state_dict": source.state_dict(), "cfg": node, "args": argparse.Namespace(lr=0.1), "path": tmp_path}
    torch.save(content, tmp_path / "with_objects.pth")
    model = small(1)
    load_weights(model, tmp_path / "with_objects.pth")
    assert_same_weights(model, source)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_file_never_runs(tmp_path, zipped, protocol):
    marker = tmp_path / "ran"
    source = small(0)
    content = {"state_dict": source.state_dict(), "cfg": Hostile(f"touch {marker}")}
    file = tmp_path / "hostile.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    model = small(1)
    load_weights(model, file)
    assert_same_weights(model, source)
    file.write_bytes(pickle.dumps({"state_dict": Hostile(f"touch {marker}")}))
    with pytest.raises(InputError):
        load_weights(model, file)
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists()  # the attack itself works: an ordinary unpickler runs it


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(InputError, match="TorchScript"):
        load_weights(small(0), tmp_path / "script.pt")


def test_wrong_files_say_what_is_wrong(tmp_path):
    model = small(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = model.state_dict()
    other = {key.replace("conv3", "conv9"): value for key, value in state.items()} | {"bn1.bias": torch.zeros(5)}
    torch.save(other, tmp_path / "other.pt")
    (tmp_path / "garbage.pt").write_bytes(b"not a weights file")
    torch.save(state, tmp_path / "whole.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:50_000])
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 100)
    torch.save({"lr": 0.1}, tmp_path / "nothing.pt")
    (tmp_path / "folder").mkdir()
    cases = {
        "other.pt": r"6 missing \(layer1.0.conv3.weight, .*\), 6 unexpected \(.*conv9.*\), 1 of another shape \(bn1",
        "garbage.pt": "not a readable weights file",
        "truncated.pt": "not a readable weights file",
        "broken.safetensors": "not a readable weights file",
        "nothing.pt": "holds no weights",
        "folder": "without data.pkl",
        "absent.pt": "no weights at",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load_weights(model, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_another_number_of_classes(tmp_path):
    source, model = small(0, num_classes=5), small(1)
    torch.save(source.state_dict(), tmp_path / "five.pt")
    with pytest.raises(InputError, match=r"5 classes, the model has 3; use backbone\.head=reset"):
        load_weights(model, tmp_path / "five.pt")
    head = model.fc.weight.clone()
    load_weights(model, tmp_path / "five.pt", head="reset")
    source.fc = model.fc
    assert_close(model.fc.weight, head, rtol=0, atol=0)
    assert_same_weights(model, source)


def test_position_tables_are_resized_on_load(tmp_path):
    torch.manual_seed(0)
    source, model = pvt_tiny(num_classes=3, image_size=64), pvt_tiny(num_classes=3, image_size=96)
    torch.save(source.state_dict(), tmp_path / "64.pt")
    load_weights(model, tmp_path / "64.pt")
    assert model.pos_embed4.shape == (1, 10, 512)
    assert_close(model.pos_embed4[:, 0], source.pos_embed4[:, 0], rtol=0, atol=0)
    images = torch.randn(1, 3, 96, 96)
    assert_close(model.eval()(images), source.eval()(images))


def test_files_without_batch_counters(tmp_path):
    source, model = small(0), small(1)
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    load_weights(model, tmp_path / "old.pth")
    assert_same_weights(model, source)


def test_trusted_backbone_drops_weight_arguments():
    node = {"_target_": "cotnet.models.cotnet50", "num_classes": 10, "weights": "x.pth", "pretrained": True}
    assert trusted_backbone(node) == {"_target_": "cotnet.models.cotnet50", "num_classes": 10}
    node = {"_target_": "cotnet.models.timm_model", "model_name": "resnet18", "checkpoint_path": "x", "drop_rate": 0.1}
    expected = {"_target_": "cotnet.models.timm_model", "model_name": "resnet18", "drop_rate": 0.1}
    assert trusted_backbone(node) == expected
    node = {"_target_": "cotnet.models.torchvision_model", "model_name": "swin_t", "weights": "DEFAULT"}
    assert trusted_backbone(node) == {"_target_": "cotnet.models.torchvision_model", "model_name": "swin_t"}


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"_target_": "torch.utils.collect_env.run", "command": "ls"},
        {"_target_": "cotnet.models.weights.read_file", "path": "x"},
        {"_target_": "cotnet.models.load_weights"},
        {"_target_": "cotnet.models.__all__"},
        {"_target_": "cotnet50"},
        {"_target_": "cotnet.models.cotnet50", "num_classes": {"_target_": "os.system", "command": "ls"}},
        {"_target_": "cotnet.models.cotnet50", "num_classes": [{"_target_": "os.system"}]},
        {"_target_": "cotnet.models.cotnet50", "_partial_": True},
        {"_target_": "cotnet.models.torchvision_model", "model_name": "os"},
        {"_target_": "cotnet.models.torchvision_model", "model_name": "fcn_resnet50"},
        {"_target_": "cotnet.models.timm_model", "model_name": "hf-hub:someone/model"},
        {"_target_": "cotnet.models.timm_model", "model_name": "local-dir:/tmp"},
    ],
)
def test_trusted_backbone_refuses_everything_else(node):
    with pytest.raises(InputError):
        trusted_backbone(node)


def test_refusal_names_the_nearest():
    with pytest.raises(InputError, match="nearest: cotnet50"):
        trusted_backbone({"_target_": "cotnet.models.cotnet5"})


@pytest.mark.slow
def test_torchvision_weights_load(tmp_path):
    import torchvision

    theirs = torchvision.models.resnet50(num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    ours = resnet50(num_classes=7)
    load_weights(ours, tmp_path / "resnet50.pth")
    images = torch.randn(2, 3, 64, 64)
    assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=0)
