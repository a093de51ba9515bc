"""`train.deterministic`: what it sets before the first CUDA call, and that a GPU then gives the same bits."""

import os
import subprocess
import sys

import pytest
import torch
from programs import environment

from cotnet.engine.determinism import VARIABLES, set_algorithms, set_variables

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
    assert line.startswith("train.deterministic=false: cuDNN takes the fastest")
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
"""


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", ["true", pytest.param("false", marks=pytest.mark.long)])
def test_the_algorithms_of_a_rank(deterministic):
    """torch knows each of these names; none of them needs a GPU to be set."""
    command = [sys.executable, "-c", PROGRAM, deterministic]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


TWICE = """
import sys, torch
from cotnet import models
from cotnet.engine.determinism import set_algorithms, set_variables
from cotnet.gpu_check.exactness import awake
set_variables(deterministic=True, gpu=True)
set_algorithms(torch.device("cuda"), deterministic=True)
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
