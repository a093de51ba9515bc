"""Norms and activations computed again: the same numbers to the last bit, and less memory."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torchvision
from torch.nn import functional as F

from cotnet import models
from cotnet.benchmarks.meters import peak_bytes
from cotnet.engine.recomputation import norms_recomputed
from cotnet.models.checkpointing import checkpoint_stages

FAMILIES = ("cotnet_small", "cotnet50", "cotnext50_2x48d", "se_cotnetd_50", "botnet50", "resnest50", "pvt_tiny")


def gradients(model, images, around, *, cast=None):
    """Logits, gradients and buffers of one pass, which leaves the model as it was."""
    model = copy.deepcopy(model)
    torch.manual_seed(1)
    with around(), torch.autocast("cpu", cast) if cast else nullcontext():
        logits = model(images)
    F.cross_entropy(logits.float(), torch.arange(len(images))).backward()
    return [logits.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def assert_same(model, images, *, cast=None):
    kept = gradients(model, images, nullcontext, cast=cast)
    again = gradients(model, images, norms_recomputed, cast=cast)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def net(name, **settings):
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=5, **settings)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.2, 0.6)
    return model.train()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_same_numbers(name, layout):
    size = {"image_size": 64} if name == "botnet50" else {}
    model = net(name, drop_path=0.3, dropout=0.2, **size).to(memory_format=layout)
    assert_same(model, torch.randn(4, 3, 64, 64).to(memory_format=layout))


def test_other_peoples_models_autocast_and_stages_computed_again_have_the_same_numbers():
    images = torch.randn(4, 3, 64, 64)
    assert_same(torchvision.models.resnet18(num_classes=5), images)
    assert_same(net("cotnet_small"), images, cast=torch.bfloat16)
    model = net("cotnet_small", drop_path=0.3)
    checkpoint_stages(model, (2,))
    assert_same(model, images)


def test_a_forward_pass_of_cot_needs_a_fifth_less():
    model, images = net("cotnet50"), torch.randn(2, 3, 160, 160)

    def forward(around):
        with around():
            return model(images)

    device, ways = torch.device("cpu"), (nullcontext, norms_recomputed)
    kept, again = (peak_bytes(device, lambda around=around: forward(around)) for around in ways)
    assert again < 0.8 * kept


def test_results_changed_in_place_are_kept_as_they_are():
    """The recipe of a norm's result is not that of its sum with something else."""
    torch.manual_seed(0)
    x, other, scale = (torch.randn(2, 8, 64, 64, requires_grad=True) for _ in range(3))
    weight = torch.ones(8, requires_grad=True)
    found = []
    for around in (nullcontext, norms_recomputed):
        with around():
            y = F.batch_norm(x, None, None, weight, None, training=True)
            y.add_(other)
            y = F.relu(y, inplace=True) * scale
        found.append(torch.autograd.grad(y.square().sum(), (x, other, scale, weight)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_argument_changed_in_place_is_an_error():
    x = torch.randn(2, 8, 64, 64)
    weight = torch.randn(4, 8, 1, 1, requires_grad=True)
    scale = torch.ones(8, requires_grad=True)
    with norms_recomputed():
        y = F.conv2d(F.batch_norm(x, None, None, scale, None, training=True), weight)
    x.zero_()
    with pytest.raises(RuntimeError, match="an argument of batch_norm was modified in place"):
        y.sum().backward()
