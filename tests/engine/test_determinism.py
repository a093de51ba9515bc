"""`train.deterministic`: what it sets before the first CUDA call, and that a GPU then gives the same bits."""

import os
import subprocess
import sys

import pytest
import torch
from programs import environment
from torch import nn

from cotnet.engine.determinism import (
    VARIABLES,
    not_deterministic,
    set_algorithms,
    set_variables,
    strict_if_possible,
)

WHAT = "train.deterministic=true: deterministic algorithms of torch and cuDNN, "


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)


def set_here():
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def test_variables_are_set_and_said():
    line = set_variables(deterministic=True, gpu=True)
    assert set_here() == VARIABLES
    assert line == f"{WHAT}{', '.join(f'{name}={value}' for name, value in VARIABLES.items())}"
    assert set_variables(deterministic=True, gpu=True) == line  # they are its own


def test_what_a_person_set_stays_and_is_named(monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    line = set_variables(deterministic=True, gpu=True)
    own = "CUBLAS_WORKSPACE_CONFIG=:16:8 and NCCL_ALGO=Ring"
    assert line == f"{WHAT}TORCHINDUCTOR_DETERMINISTIC=1; your {own} kept"
    assert set_here() == VARIABLES | {"NCCL_ALGO": "Ring", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}


def test_false_sets_nothing_and_says_what_it_costs():
    line = set_variables(deterministic=False, gpu=True)
    assert line.startswith("train.deterministic=false: torch and cuDNN may take any algorithm; ")
    assert line.endswith("continued may differ in the last bits")
    assert set_here() == {}


@pytest.mark.parametrize("deterministic", [False, True])
def test_without_a_gpu_nothing_is_set_or_said(deterministic):
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    assert set_variables(deterministic=deterministic, gpu=False) is None
    set_algorithms(torch.device("cpu"), deterministic=deterministic)
    assert set_here() == {}
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before
    assert not torch.are_deterministic_algorithms_enabled()


PROGRAM = """
import sys, torch
from cotnet.engine.determinism import set_algorithms, set_variables
deterministic = sys.argv[1] == "true"
set_variables(deterministic=deterministic, gpu=True)
set_algorithms(torch.device("cuda"), deterministic=deterministic)
import torch._inductor.config
assert torch.backends.cudnn.deterministic is deterministic
assert torch.backends.cudnn.benchmark is not deterministic
assert torch.are_deterministic_algorithms_enabled() is deterministic
assert torch.is_deterministic_algorithms_warn_only_enabled()
assert torch.utils.deterministic.fill_uninitialized_memory is False
assert torch._inductor.config.deterministic is deterministic
set_algorithms(torch.device("cuda"), deterministic=deterministic, sizes_vary=True)
assert not torch.backends.cudnn.benchmark
"""


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", ["true", pytest.param("false", marks=pytest.mark.long)])
def test_the_algorithms_of_a_rank(deterministic):
    """torch knows each of these names; none of them needs a GPU to be set."""
    command = [sys.executable, "-c", PROGRAM, deterministic]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Writes(nn.Module):
    """`put_` without accumulation has no deterministic algorithm anywhere."""

    def forward(self, x):
        return x.flatten().put(torch.zeros(1, dtype=torch.int64), torch.ones(1)).sum()


@pytest.fixture
def algorithms():
    kept = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = kept
    torch.use_deterministic_algorithms(mode=False)


def tried(net, *, any_rank=bool):
    """The line, and whether what is not deterministic only causes warnings."""
    x = torch.ones(2, 3, requires_grad=True)
    how = {"deterministic": True, "trial": lambda: net(x).sum().backward(), "any_rank": any_rank}
    line = strict_if_possible(torch.device("cuda"), **how)
    assert torch.are_deterministic_algorithms_enabled()
    return line, torch.is_deterministic_algorithms_warn_only_enabled()


def test_strict_unless_the_model_needs_more(algorithms):
    """torch's fused attention has a deterministic backward pass in strict mode only."""
    assert tried(nn.Linear(3, 3)) == (None, False)
    told = "train.deterministic=true: {}; a run that is cut and continued may differ in the last bits"
    assert tried(Writes()) == (told.format("put_ has no deterministic algorithm"), True)
    other = tried(nn.Linear(3, 3), any_rank=lambda _: True)
    assert other == (told.format("on another rank, something is not deterministic"), True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tried(nn.Linear(4, 4))


def test_what_strictness_is_not_asked_for(algorithms):
    for device, deterministic in ((torch.device("cpu"), True), (torch.device("cuda"), False)):
        how = {"deterministic": deterministic, "trial": None, "any_rank": None}
        assert strict_if_possible(device, **how) is None
        assert not torch.are_deterministic_algorithms_enabled()


CUBLAS = "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or `at::Context::"
CUBLAS += (
    "setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS and you have "
)
CUBLAS += "CUDA >= 10.2. To enable deterministic behavior in this case, you must set an environment variable before "
CUBLAS += "running your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."


def test_what_is_not_deterministic():
    assert not_deterministic(CUBLAS) == "cuBLAS needs CUBLAS_WORKSPACE_CONFIG=:4096:8"
    assert not_deterministic("CUDA error: an illegal memory access was encountered") == ""


TWICE = """
import sys, torch
from cotnet import models
from cotnet.engine.determinism import set_algorithms, set_variables
from cotnet.gpu_check.exactness import awake
set_variables(deterministic=True, gpu=True)
set_algorithms(torch.device("cuda"), deterministic=True, strict=True)
torch.manual_seed(0)
model = awake(getattr(models, sys.argv[1])(num_classes=10)).cuda().to(memory_format=torch.channels_last)
images = torch.randn(8, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
found = []
for _ in range(4):
    torch.manual_seed(1)
    with torch.autocast("cuda", torch.bfloat16):
        model(images).float().logsumexp(1).sum().backward()
    found.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
for other in found[1:]:
    assert all(map(torch.equal, found[0], other))
"""


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cotnet50", "botnet50", "pvt_tiny", "pvt_v2_b2_li", "resnet50", "resnest50"])
def test_the_same_step_has_the_same_gradients(name):
    command = [sys.executable, "-W", "ignore::UserWarning", "-c", TWICE, name]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
