"""Norms and activations computed again: the same numbers to the last bit, and less memory."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torchvision
from nets import build
from torch.nn import functional as F

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


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_same_numbers(name, layout):
    size = {"image_size": 64} if name == "botnet50" else {}
    model = build(name, drop_path=0.3, dropout=0.2, **size).to(memory_format=layout)
    assert_same(model, torch.randn(4, 3, 64, 64).to(memory_format=layout))


def test_other_peoples_models_autocast_and_stages_computed_again_have_the_same_numbers():
    images = torch.randn(4, 3, 64, 64)
    assert_same(torchvision.models.resnet18(num_classes=5), images)
    assert_same(build("cotnet_small"), images, cast=torch.bfloat16)
    model = build("cotnet_small", drop_path=0.3)
    checkpoint_stages(model, (2,))
    assert_same(model, images)


def assert_same_gradients(function, *inputs):
    """Of a sum of squares."""
    inputs = [x.requires_grad_() for x in inputs]
    found = []
    for around in (nullcontext, norms_recomputed):
        with around():
            y = function(*inputs)
        found.append(torch.autograd.grad(y.square().sum(), inputs))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_recipes_of_views_look_at_them_as_the_views_do():
    x, w = torch.randn(64, 32, 32), torch.randn(32, 32)
    assert_same_gradients(lambda x, w: F.layer_norm(F.gelu(x @ w).transpose(1, 2), (32,)) @ w, x, w)
    assert_same_gradients(lambda x, w: F.batch_norm(F.gelu(x @ w).flatten(0, 1), None, None, training=True) @ w, x, w)
    assert_same_gradients(lambda x, w: F.relu(F.layer_norm(x @ w, (32,)).transpose(1, 2), inplace=True) @ w, x, w)
    assert_same_gradients(lambda x, w: F.relu((F.gelu(x) @ w)[:1].expand(64, -1, -1)) @ w, x, w)


def test_results_changed_in_place_are_kept_as_they_are():
    """The recipe of a norm's result is not that of its sum with something else, and relu does without its input."""
    torch.manual_seed(0)
    x, other, scale = torch.randn(2, 8, 64, 64), torch.randn(2, 8, 64, 64), torch.randn(2, 8, 64, 64)

    def added(x, other, scale):
        return F.relu(F.batch_norm(x, None, None, training=True).add_(other), inplace=True) * scale

    def before_activation(x, other, scale):
        h = x * scale
        y = F.relu(h) * other
        h += y
        return h

    assert_same_gradients(added, x, other, scale)
    assert_same_gradients(before_activation, x, other, scale)


def peaks(forward):
    """Bytes of a forward pass and of what it keeps, without recipes and with them."""

    def within(around):
        with around():
            return forward()

    return [peak_bytes(torch.device("cpu"), lambda way=way: within(way)) for way in (nullcontext, norms_recomputed)]


def test_a_forward_pass_keeps_less():
    images = torch.randn(2, 3, 160, 160)
    model = build("cotnet50")
    kept, again = peaks(lambda: model(images))
    assert again < 0.8 * kept
    checkpoint_stages(model, (1, 2, 3, 4))
    kept, again = peaks(lambda: model(images))
    assert again < 1.1 * kept  # recipes of the running block hold what it was about to forget
    layers = [(torch.nn.Conv2d(8, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(place)) for place in (False, True)]
    for block in layers:
        chain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), *(layer for _ in range(6) for layer in block))
        kept, again = peaks(lambda chain=chain: chain(images))
        assert again < 0.8 * kept


def test_tensors_changed_in_place_are_an_error():
    x = torch.randn(2, 8, 64, 64)
    weight, scale = torch.randn(4, 8, 1, 1, requires_grad=True), torch.ones(8, requires_grad=True)
    with norms_recomputed():
        y = F.conv2d(F.batch_norm(x, None, None, scale, None, training=True), weight)
        z = weight.exp()
        total = (z * 1).sum()
    x.zero_()
    with pytest.raises(RuntimeError, match="modified in place"):
        y.sum().backward()
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified in place"):
        total.backward()
