"""Without a C compiler or Python's headers CoT runs its PyTorch form on a GPU, and says so in a line."""

import subprocess
import sys
import sysconfig

import pytest
import torch
from programs import environment

from cotnet.models import contextual, cotnet_small, resnet_small
from cotnet.ops.toolchain import missing_for_kernels

CUDA = torch.device("cuda")


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A machine whose only compiler is an empty `gcc`."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "gcc").touch(mode=0o755)
    return tmp_path / "gcc"


@pytest.fixture
def header(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path / "include")})
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    return tmp_path / "include" / "Python.h"


def test_a_compiler_and_the_headers_are_enough(compiler, header):
    assert missing_for_kernels() == ""
    compiler.rename(compiler.with_name("clang"))
    assert missing_for_kernels() == ""


def test_without_a_compiler(compiler, header, monkeypatch):
    compiler.unlink()
    assert missing_for_kernels() == "a C compiler (neither gcc or clang nor CC is there); install one"
    monkeypatch.setenv("CC", "icc")
    assert missing_for_kernels() == "a C compiler (CC=icc is not there); install one"


def test_without_the_headers(compiler, header):
    header.unlink()
    assert missing_for_kernels() == f"Python's headers ({header} is not there); install them"


def test_the_line_is_about_cot_on_a_gpu(compiler, header, monkeypatch):
    monkeypatch.setattr(contextual, "TRITON", False)  # as cotnet.ops finds it on such a machine
    header.unlink()
    cot, plain = cotnet_small(num_classes=2), resnet_small(num_classes=2)
    line = contextual.operator_line(cot, CUDA)
    assert line == f"CoT runs its PyTorch form, which is slower: its kernels need {missing_for_kernels()}"
    assert contextual.operator_line(plain, CUDA) is None
    assert contextual.operator_line(cot, torch.device("cpu")) is None
    monkeypatch.setattr(contextual, "TRITON", True)
    assert contextual.operator_line(cot, CUDA) is None


PROGRAM = """
import torch
from cotnet import ops
assert not ops.TRITON
value, weight = torch.randn(2, 8, 5, 5), torch.randn(2, 2, 9, 5, 5)
pairs = [[x.detach().to(device).requires_grad_() for x in (value, weight)] for device in ("cpu", "cuda")]
for pair in pairs:
    ops.local_aggregation(*pair).square().sum().backward()
for on_cpu, on_gpu in zip(*pairs):
    torch.testing.assert_close(on_gpu.grad.cpu(), on_cpu.grad)
"""


@pytest.mark.gpu
def test_the_operator_without_a_compiler_on_a_gpu(tmp_path):
    given = {**environment(), "PATH": str(tmp_path), "CC": "no-such-compiler"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
