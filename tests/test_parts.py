"""The small parts of the loop against values worked out by hand."""

import itertools
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cotnet.engine.distributed import Ranks
from cotnet.engine.evaluation import LOSS, Interrupted, evaluate
from cotnet.engine.evaluation import figures as figures_of
from cotnet.engine.optimizer import MovingAverage, parameter_groups
from cotnet.engine.precision import Precision, choose_precision
from cotnet.engine.schedule import set_lr
from cotnet.engine.signals import stop_request
from cotnet.engine.step import seed_step
from cotnet.errors import InputError

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def test_parameter_groups_and_rates():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decayed, plain = parameter_groups(net, 0.05)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in plain["params"]] == [1, 1, 1, 1]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    optimizer = torch.optim.SGD([{**decayed, "lr_scale": 0.5}, plain], lr=9.0)
    set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_moving_average_of_weights_and_statistics():
    net = nn.BatchNorm1d(1).double()
    average = MovingAverage(net, decay=0.5)
    expected = {"weight": 1.0, "running_mean": 0.0}
    for update, value in enumerate((3.0, -1.0, 2.0, 7.0, 5.0)):
        net.weight.data.fill_(value)
        net.running_mean.fill_(10 * value)
        net.num_batches_tracked.fill_(update)
        average.update()
        rate = min(0.5, (1 + update) / (10 + update))
        expected["weight"] = rate * expected["weight"] + (1 - rate) * value
        expected["running_mean"] = rate * expected["running_mean"] + (1 - rate) * 10 * value
    assert average.module.weight.item() == pytest.approx(expected["weight"], rel=1e-12)
    assert average.module.running_mean.item() == pytest.approx(expected["running_mean"], rel=1e-12)
    assert average.module.num_batches_tracked.item() == 4
    assert not average.module.weight.requires_grad


def test_no_averaging_is_said_by_a_decay_of_0():
    net = nn.Linear(3, 2)
    average = MovingAverage(net, decay=0.0)
    for _ in range(2):
        nn.init.normal_(net.weight)
        average.update()
        assert torch.equal(average.module.weight, net.weight)


def test_dropout_of_a_step_depends_on_seed_step_and_rank_alone():
    draws = {}
    for key in itertools.product((0, 1), (0, 1, 500), (0, 1)):
        torch.rand(17)
        seed_step(*key)
        draws[key] = torch.rand(4)
        seed_step(*key)
        assert torch.equal(draws[key], torch.rand(4))
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == len(draws)


class Once:
    """Six samples in batches of four, the last one padded."""

    def __init__(self, *indices: list[int]) -> None:
        self.indices = indices

    def batches(self, epoch, first=0):
        for indices in self.indices:
            images = torch.tensor(indices).clamp(min=0)[:, None].expand(4, 7)
            yield images, torch.tensor([max(i, 0) for i in indices]), torch.tensor(indices)


def figures(loader, stop=lambda: False):
    # The logits of image i: its own class comes first for i < 3, sixth for i >= 3 (of seven classes).
    def net(images):
        logits = torch.arange(7.0).repeat(len(images), 1)
        own = images[:, 0].long()
        return logits.scatter(1, own[:, None], torch.where(own < 3, 9.0, 0.5)[:, None])

    model = nn.Identity()
    model.forward = net
    table = evaluate(
        {"net": model},
        loader,
        samples=6,
        flip=False,
        prepare=lambda images: images.float(),
        precision=Precision(name="fp32", device=torch.device("cpu")),
        ranks=ALONE,
        stop=stop,
    )["net"]
    return figures_of(table, torch.arange(6))


def test_evaluation_counts_by_hand():
    result = figures(Once([0, 1, 2, 3], [4, 5, -1, -1]))
    assert (result["top1"], result["top5"], result["images"]) == (50.0, 50.0, 6)
    losses = []
    for i in range(6):
        logits = torch.arange(7.0)
        logits[i] = 9.0 if i < 3 else 0.5
        losses.append(float(torch.logsumexp(logits, 0) - logits[i]))
    assert result["loss"] == pytest.approx(sum(losses) / 6, rel=1e-6)


def test_evaluation_with_mirror_images_averages_the_logits():
    images = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])  # (2, 3): the logits are the image
    batch = (images, torch.tensor([2, 1]), torch.tensor([0, 1]))

    class Single:
        def batches(self, epoch, first=0):
            yield batch

    def measured(*, flip):
        settings = {"samples": 2, "prepare": lambda images: images, "ranks": ALONE, "flip": flip}
        precision = Precision(name="fp32", device=torch.device("cpu"))
        return float(evaluate({"net": nn.Identity()}, Single(), precision=precision, **settings)["net"][:, LOSS].mean())

    def loss(*rows):
        return pytest.approx(float(nn.functional.cross_entropy(torch.tensor(rows), torch.tensor([2, 1]))), rel=1e-6)

    assert measured(flip=False) == loss([3.0, 0.0, 0.0], [0.0, 0.0, 2.0])
    assert measured(flip=True) == loss([1.5, 0.0, 1.5], [1.0, 0.0, 1.0])


@pytest.mark.parametrize("indices", [([0, 1, 2, 3], [4, -1, -1, -1]), ([0, 1, 2, 3], [3, 4, 5, -1])])
def test_a_missing_or_doubled_sample_is_an_error(indices):
    with pytest.raises(RuntimeError, match="1 of 6 samples were not evaluated exactly once"):
        figures(Once(*indices))


def test_evaluation_stops_when_asked():
    with pytest.raises(Interrupted):
        figures(Once([0, 1, 2, 3], [4, 5, -1, -1]), stop=lambda: True)


def test_stop_request_sets_a_flag_and_gives_the_handlers_back():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background starts deaf to it
    before = signal.getsignal(signal.SIGTERM)
    with stop_request() as stop:
        assert not stop.received
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received
        os.kill(os.getpid(), signal.SIGINT)  # a rank gets one Ctrl-C of the terminal and, from its parent, a SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("interrupted", [True, False])
def test_stop_request_hands_a_signal_on_once_the_run_is_saved(interrupted):
    """A cluster's launcher requeues the job in its own handler: not before, and not of a run that has finished."""
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, _frame: heard.append(number))
    try:
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.received and heard == []
            stop.forward = interrupted
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2] * interrupted


def test_precision(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, choice in (({"avx512_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert choose_precision("auto", cpu) == choice
    product = SimpleNamespace()
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with Precision(name=name, device=cpu).autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == dtype
    assert Precision(name="fp64", device=cpu).parameters == torch.float64
    assert Precision(name="fp16", device=cpu).scaler().is_enabled()


def test_tf32_is_a_gpus_and_fp32_is_without():
    with pytest.raises(
        InputError,
        match=r"^train\.precision=tf32 needs a GPU of compute capability 8\.0 or newer; use train\.precision=fp32$",
    ):
        choose_precision("tf32", torch.device("cpu"))
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    try:
        for name, expected in (("tf32", True), ("bf16", True), ("fp32", False), ("fp16", False)):
            precision = Precision(name=name, device=torch.device("cuda"))
            precision.set_up_process()
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (expected, expected)
            assert precision.parameters == torch.float32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
