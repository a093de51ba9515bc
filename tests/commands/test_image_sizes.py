"""What is compiled is tried at every image size before work begins: `auto` falls back there, not after hours."""

import functools

import pytest
import torch
from torch import Tensor, nn

from cotnet import parts
from cotnet.commands.eval_worker import called_model
from cotnet.commands.run_parts import new_state
from cotnet.commands.train_classifier import sizes_ahead, trained_model
from cotnet.config.compose import compose
from cotnet.engine.compilation import compiled
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import precision_of
from cotnet.engine.step import trial_pass
from cotnet.errors import InputError

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


@torch.library.custom_op("cotnet_tests::not_at_48", mutates_args=())
def not_at_48(x: Tensor) -> Tensor:
    """A copy; like a kernel that a compiler cannot make for one size."""
    return x.clone()


@not_at_48.register_fake
def _fake(x):
    if x.shape[-1] == 48:
        raise RuntimeError("no kernel for 48 px")
    return torch.empty_like(x)


not_at_48.register_autograd(lambda _, upstream: upstream)


class SizedNet(nn.Sequential):
    """Logits of ten classes. `seen`: the sizes of the images that it was called with, compiled or not."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    def forward(self, x):
        return super().forward(not_at_48(x))


@pytest.fixture
def on_a_gpu(monkeypatch):
    """`auto` compiles, as on a GPU; by torch's quick compiler."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr("cotnet.engine.compilation.compile_mode", lambda given, _: "default" if given else None)
    monkeypatch.setattr("cotnet.commands.train_classifier.compile_mode", lambda given, _: given)
    monkeypatch.setattr("cotnet.engine.compilation.compiled", functools.partial(compiled, backend="aot_eager"))


def training(*overrides):
    shared = ["backbone=cotnet_small", "data.root=x", "train.batch_size=8", "train.precision=fp32"]
    config = compose("train", [*shared, *overrides])
    settings = parts.settings_of(config)
    state = new_state(config, settings, precision_of(settings.train, ALONE.device), SizedNet)
    return config, settings, state


GROWING = ("augmentation.progressive=[32,0,4]", "data.image_size=64", "train.epochs=6")


@pytest.mark.parametrize(
    ("given", "epoch", "expected"),
    [
        (GROWING, 0, (32, 64)),
        (("augmentation.progressive=[32,0,4]", "data.image_size=128", "train.epochs=6"), 0, (32, 64, 96, 128)),
        (("augmentation.progressive=[32,0,4]", "data.image_size=128", "train.epochs=6"), 2, (64, 96, 128)),
        (("augmentation.progressive=[32,0,4]", "data.image_size=128", "train.epochs=2"), 0, (32, 64)),
        ((*GROWING, "train.max_steps=5"), 0, (32,)),
        ((*GROWING, "train.max_steps=500"), 0, (32, 64)),
        ((*GROWING,), 6, (64,)),
        (("data.image_size=64",), 0, (64,)),
    ],
)
def test_the_sizes_that_a_run_will_see(given, epoch, expected):
    config, settings, state = training(*given)
    state.epoch, state.step = epoch, 5 * epoch
    assert sizes_ahead(config, settings, state, files=44) == expected


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_a_graph_for_each_size_before_training(on_a_gpu, capsys):
    config, settings, state = training(*GROWING, "train.compile=auto")
    before = [tensor.clone() for tensor in state.model.state_dict().values()]
    model = trained_model(settings, state, ALONE, images=4, sizes=sizes_ahead(config, settings, state, files=44))
    assert capsys.readouterr().out == "train.compile: a graph for each image size, before training: 32, 64 px\n"
    assert graphs() == 2
    for size in (32, 64):
        model(torch.zeros(4, 3, size, size)).sum().backward()
    assert graphs() == 2
    assert model is not state.model
    state.model.zero_grad()
    state.model.load_state_dict(dict(zip(state.model.state_dict(), before, strict=True)))
    model = trained_model(settings, state, ALONE, images=4, sizes=[32])
    assert all(torch.equal(a, b) for a, b in zip(state.model.state_dict().values(), before, strict=True))
    assert capsys.readouterr().out == ""


def test_auto_falls_back_for_a_later_size_before_training(on_a_gpu, capsys):
    _, settings, state = training("train.compile=auto")
    assert trained_model(settings, state, ALONE, images=4, sizes=[32, 48]) is state.model
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("train.compile=auto: not compiled; compiling failed: ")
    assert "fake tensor" in line
    _, settings, state = training("train.compile=true")
    with pytest.raises(
        InputError, match=r"^train\.compile=true failed: .*fake tensor.*; set train\.compile=auto or false$"
    ):
        trained_model(settings, state, ALONE, images=4, sizes=[32, 48])


def test_a_pass_that_fails_leaves_no_trace():
    """As a compiler may in the backward pass, after BatchNorm has taken new statistics."""
    _, _, state = training()
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}

    def fail(_gradient):
        assert not torch.equal(state.model[1].running_mean, before["1.running_mean"])
        assert state.model[4].weight.grad is not None
        raise RuntimeError("the compiler failed")

    def loss():
        *first, last = state.model
        hidden = torch.nn.Sequential(*first)(torch.rand(4, 3, 32, 32))
        hidden.register_hook(fail)
        return last(hidden).sum()

    with pytest.raises(RuntimeError, match="the compiler failed"):
        trial_pass(state, loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_uncompiled_nothing_is_tried(capsys):
    _, settings, state = training("train.compile=auto")
    assert trained_model(settings, state, ALONE, images=4, sizes=[32, 0]) is state.model
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_an_evaluation_tries_every_shape(on_a_gpu, capsys):
    _, settings, state = training()
    precision, model = precision_of(settings.train, ALONE.device), state.model.eval()
    shapes = [(4, 3, 32, 32), (2, 3, 32, 32), (4, 3, 64, 64)]
    called = called_model(model, {"compile": "auto"}, precision, ALONE, shapes=shapes)
    assert called is not model
    assert graphs() == 3
    assert called_model(model, {"compile": "auto"}, precision, ALONE, shapes=[*shapes, (4, 3, 48, 48)]) is model
    assert "fake tensor" in capsys.readouterr().out
