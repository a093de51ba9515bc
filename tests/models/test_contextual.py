"""The CoT block as a GPU runs it, on CUDA tensors without memory (and so without a GPU): formats, dtypes and copies."""

import copy
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from cotnet import ops
from cotnet.benchmarks.local_aggregation import unfold_form
from cotnet.models.contextual import CoTLayer, taps_before_groups
from cotnet.ops import local_aggregation_triton

COPIES = {"clone", "copy_", "_to_copy", "contiguous"}


class Recorder(TorchDispatchMode):
    """Operators with their arguments and results. Convolutions answer in their input's format, as cuDNN does; what
    torch would run without cuDNN, and so on CUDA tensors without a GPU, does not.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, name = func(*args, **(kwargs or {})), func._schema.name.split("::")[1]
        if name == "convolution" and args[0].is_contiguous(memory_format=torch.channels_last):
            result = result.to(memory_format=torch.channels_last)
        self.calls.append((name, args, result))
        return result

    def copies(self, least):
        """How often results of at least so many elements were copied, by operator."""
        names = [name for name, _, x in self.calls if name in COPIES and x.numel() >= least]
        return Counter(names)

    def call(self, name):
        return next((args, result) for found, args, result in self.calls if found == name)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What `cotnet.ops` imports on a machine with a GPU; CUDA autocast in bfloat16."""
    monkeypatch.setattr(ops, "TRITON", True)
    monkeypatch.setattr(ops, "aggregate", local_aggregation_triton.aggregate, raising=False)
    with FakeTensorMode():
        before = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        yield
        torch.set_autocast_enabled("cuda", before)


def passed(groups, layout):
    """A layer's operators on (2, 96, 14, 14) maps."""
    with torch.device("cuda"):
        layer = CoTLayer(96, groups=groups)
    x = torch.empty(2, 96, 14, 14, device="cuda", dtype=torch.bfloat16).to(memory_format=layout)
    with Recorder() as record:
        y = layer(x)
    assert (y.dtype, y.stride()) == (x.dtype, x.stride())
    return record


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_eager_copies_no_map(on_a_gpu, groups, layout):
    """Neither for a format nor, in GroupNorm, for a dtype."""
    record = passed(groups, layout)
    (value, weight, _), _ = record.call("local_aggregation")
    assert value.is_contiguous(memory_format=layout)
    assert {value.dtype, weight.dtype} == {torch.bfloat16}
    assert not record.copies(value.numel())


@pytest.mark.parametrize("groups", [1, 2])
def test_compiled_copies_no_map(on_a_gpu, groups, monkeypatch):
    """The compiler turns these operators into loops over memory: none of them turns a map around."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    record = passed(groups, torch.channels_last)
    (value, weight, _), _ = record.call("local_aggregation")
    assert value.is_contiguous(memory_format=torch.channels_last)
    assert weight.shape == (2, groups, 12 // groups, 9, 14, 14)
    assert weight.stride()[2] == 1  # groups are neighbours
    for name, args, result in record.calls:
        if name in COPIES and result.numel() >= value.numel():
            assert name == "_to_copy"  # between float32 and bfloat16: registers of a fused loop
            assert result.stride() == args[0].stride()


@pytest.mark.parametrize("groups", [1, 2])
def test_taps_before_groups_are_the_same_kernels(groups):
    torch.manual_seed(0)
    layer = CoTLayer(96, groups=groups).double()
    conv, norm = layer.embed[3:]
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 48, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    expected = norm(conv(x)).unflatten(1, (groups, -1, 9))
    found = taps_before_groups(x, conv, norm)
    assert_close(found, expected, rtol=0, atol=1e-12)
    leaves, upstream = [x, *conv.parameters(), *norm.parameters()], torch.randn(expected.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, leaves, upstream, retain_graph=True) for y in (found, expected)]
    assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_the_operator_copies_nothing_for_two_parts():
    """The operator's own code, forward and backward, with the kernels in Triton's interpreter."""
    value = torch.randn(2, 32, 3, 4).to(memory_format=torch.channels_last)
    weight = torch.randn(2, 36, 3, 4).to(memory_format=torch.channels_last).unflatten(1, (2, 2, 9))
    with Recorder() as record:
        result = local_aggregation_triton.aggregate._init_fn(value, weight, 1)
        gradients = local_aggregation_triton.differentiate._init_fn(value, value, weight, 1, True, True)
    assert "clone" not in record.copies(1)  # `contiguous`; the interpreter itself copies to and fro by `copy_`
    assert [x.stride() for x in (result, *gradients)] == [value.stride(), value.stride(), weight.stride()]
    halves = zip(value.chunk(2, 1), weight.unbind(1), strict=True)
    assert_close(result, torch.cat([unfold_form(*half) for half in halves], 1), rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_layer_on_the_gpu(groups, layout):
    """Eager and compiled, under autocast, against float64 on the CPU."""
    torch.compiler.reset()
    torch.manual_seed(0)
    layer = CoTLayer(96, groups=groups)
    x = torch.randn(4, 96, 14, 14)
    expected = copy.deepcopy(layer).double()(x.double())
    on_the_gpu = layer.to("cuda", memory_format=layout)
    for form in (on_the_gpu, torch.compile(on_the_gpu, fullgraph=True)):
        with torch.autocast("cuda", torch.bfloat16):
            found = form(x.to("cuda", torch.bfloat16, memory_format=layout))
        assert (found - expected.cuda()).norm() < 0.02 * expected.norm()
