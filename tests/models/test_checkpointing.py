"""Activation checkpointing: less is kept, and every number stays the same."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from nets import build
from torch.nn import functional as F

from cotnet import models
from cotnet.models.checkpointing import checkpoint_stages
from cotnet.models.cotnet import cot
from cotnet.models.resnet import convolution
from cotnet.models.resnet_base import ResNet, small_stem

pytestmark = pytest.mark.slow

FAMILIES = ("cotnet_small", "pvt_tiny", "pvt_v2_b0", "cotnext50_2x48d", "se_cotnetd_50", "botnet50", "resnest50")


def step(model, images, *, call=None):
    """Logits, gradients, buffers, and the bytes kept for the backward pass."""
    torch.manual_seed(1)
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = (model if call is None else call)(images)
    F.cross_entropy(logits, torch.tensor([0, 4])).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return logits.detach(), gradients, dict(model.named_buffers()), sum(kept.values())


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    for mine, theirs in zip(one[1:3], other[1:3], strict=True):
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_stay_the_same_with_dropout_and_drop_path(name):
    model = build(name, drop_path=0.3, dropout=0.2)
    some, every = copy.deepcopy(model), copy.deepcopy(model)
    checkpoint_stages(some, (3,))
    checkpoint_stages(every, (1, 2, 3, 4))
    images = torch.randn(2, 3, 64, 64)
    plain, part, whole = (step(net, images) for net in (model, some, every))
    assert_same(plain, part)
    assert_same(plain, whole)
    assert whole[3] < part[3] < plain[3]
    assert whole[3] < 0.6 * plain[3]


@pytest.mark.long
@pytest.mark.slow
def test_compiled_it_is_the_same_function():
    torch.manual_seed(0)
    first, widths = partial(small_stem, channels=16), {"width": 16, "channels": 64}
    model = ResNet(first, [[cot], [convolution]], **widths, strides=(2, 2), num_classes=5).double()
    twin = copy.deepcopy(model)
    checkpoint_stages(twin, (1, 2))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plain = step(model, images)
    compiled = step(twin, images, call=torch.compile(twin, fullgraph=True, backend="aot_eager"))
    for mine, theirs in zip(plain[1:3], compiled[1:3], strict=True):
        for key, tensor in mine.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-6, atol=1e-9)


def test_unknown_stages_are_refused():
    with pytest.raises(ValueError, match=r"ResNet has the stages \[1, 2, 3, 4\], not \[5\]"):
        checkpoint_stages(models.cotnet_small(), (5,))
    with pytest.raises(ValueError, match=r"ResNet has the stages \[\], not \[1\]"):
        checkpoint_stages(torchvision.models.resnet18(), (1,))
