"""A whole training step on CUDA tensors without memory, and so without a GPU: every tensor is on the device that it
belongs to, no operator needs a value that only the device knows, and no copy makes the host wait.

The backward pass alone is left out: autograd's engine asks the driver for its stream.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cotnet import ops, parts
from cotnet.benchmarks import loop
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision
from cotnet.engine.step import train_step
from cotnet.ops import local_aggregation_triton
from data.augmentation import fused, kernels, operations, transform

CUDA = torch.device("cuda", 0)
BATCH, SIDE = 8, 32
CACHES = (operations.constant, operations._levels, transform._normal_levels, transform._noise)
kernels.apply_turn.register_fake(lambda images, _codes, _numbers, _tables, *, bicubic: torch.empty_like(images))
kernels.count_levels.register_fake(lambda images: images.new_empty(len(images), 3, 256, dtype=torch.int32))
kernels.look_up_levels.register_fake(lambda images, table: torch.empty_like(images, dtype=table.dtype))


class Copies(TorchDispatchMode):
    """Copies between devices for which the host waits, as torch's sync debug mode reports them; and the dtypes of the
    matrix products."""

    def __init__(self):
        super().__init__()
        self.waits, self.products = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name, given = func._schema.name, tree_leaves((args, kwargs or {}))
        if name in ("aten::_to_copy", "aten::copy_"):
            devices = {x.device.type for x in (*given[: 1 + name.endswith("copy_")], result) if torch.is_tensor(x)}
            blocking = not ((kwargs or {}).get("non_blocking") or (name == "aten::copy_" and args[2:] == (True,)))
            if devices == {"cpu", "cuda"} and blocking:
                self.waits.append((name, tuple(result.shape)))
        if name in ("aten::convolution", "aten::addmm", "aten::mm"):
            self.products.add(result.dtype)
        return result


def without_memory(self, model):
    """As Precision.to_device, for a model whose values do not matter."""
    for module in model.modules():
        for name, x in module._parameters.items():
            layout = self.layout if x is not None and x.ndim == 4 else torch.preserve_format
            if x is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(x, device=CUDA, memory_format=layout))
        for name, x in module._buffers.items():
            if x is not None:
                module._buffers[name] = torch.empty(x.shape, dtype=x.dtype, device=CUDA)
    return model


@pytest.fixture
def gpu(monkeypatch):
    """What our modules find on a machine with a GPU, for tensors without memory."""

    def with_values(function):
        def here(*args, **kwargs):
            with unset_fake_temporarily():
                return function(*args, **kwargs)

        return here

    monkeypatch.setattr(ops, "TRITON", True)
    monkeypatch.setattr(fused, "TRITON", True)
    monkeypatch.setattr(ops, "aggregate", local_aggregation_triton.aggregate, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(Precision, "to_device", without_memory)
    monkeypatch.setattr(loop, "set_algorithms", lambda *_, **__: None)
    monkeypatch.setattr(fused, "plan_turn", with_values(fused.plan_turn))
    monkeypatch.setattr(loop, "backbone_of", with_values(loop.backbone_of))
    yield FakeTensorMode(allow_non_fake_inputs=True)
    for cache in CACHES:
        cache.cache_clear()


def traced_step(mode, monkeypatch, folder, *overrides):
    """The copies of a run's second step, when kernels and tables are there; its state, and what it has recorded."""
    given = ["data.root=x", "logger=none", f"data.image_size={SIDE}", f"train.batch_size={BATCH}", *overrides]
    given += ["train.precision=bf16", "train.compile=false", "train.deterministic=false", "data.num_classes=10"]
    config, indices = compose("train", given) | {"output_dir": str(folder)}, torch.arange(BATCH)
    taken = torch.arange(BATCH // config["train"]["accumulation"])  # a slice within the mode would have no values
    with mode:
        bench = loop.LoopBench(config, Ranks(rank=0, world_size=1, device=CUDA), 1)
        augment = parts.train_transform(config, parts.settings_of(config), bench.context.precision)

        def on_the_device(images, targets, _indices, epoch):
            return augment(images, targets, taken, epoch)

        def backward(_loss):
            for parameter in bench.state.model.parameters():
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        context = replace(bench.context, data=replace(bench.context.data, transform=on_the_device))
        images = torch.empty(BATCH, 3, SIDE, SIDE, dtype=torch.uint8, device=CUDA)
        targets = torch.empty(BATCH, dtype=torch.int64, device=CUDA)
        bench.state.model.train()
        for _ in range(2):
            with Copies() as copies:
                record = train_step(context, bench.state, images, targets, indices)
    return copies, bench.state, record


COT = ("cotnet_small", "augmentation=advanced", "augmentation.color_jitter=0.4", "augmentation.hue=0.1")
COT += ("augmentation.vertical_flip=0.5", "train.clip_norm=1", "train.accumulation=2")
LAMB = ("resnet_small", "augmentation=cotnet", "train.loss=bce", "optimizer=lamb", "train.channels_last=false")
FAMILIES = ("cotnext50_2x48d", "se_cotnetd_50", "botnet50", "pvt_tiny", "pvt_v2_b2_li", "resnest50", "halonet50")


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [COT, *(pytest.param(given, marks=pytest.mark.long) for given in (LAMB, *((name,) for name in FAMILIES)))]
)
def test_a_step_is_on_the_device_and_does_not_wait(given, gpu, monkeypatch, tmp_path):
    backbone, *overrides = given
    copies, state, record = traced_step(gpu, monkeypatch, tmp_path, f"backbone={backbone}", *overrides)
    assert copies.waits == []
    assert copies.products == {torch.bfloat16}
    kept = [*state.model.state_dict().values(), *state.ema.module.state_dict().values(), *state.window.values()]
    for values in state.optimizer.state.values():
        kept += [value for name, value in values.items() if torch.is_tensor(value) and name != "step"]
    assert {tensor.device for tensor in (*kept, record.loss, record.grad_norm)} == {CUDA}
    assert record.indices.device.type == "cpu"


def test_what_waits_or_is_elsewhere_is_found():
    with FakeTensorMode(), Copies() as copies:
        there = torch.empty(3, device=CUDA)
        torch.empty(3).to(CUDA, non_blocking=True)
        there.copy_(torch.empty(3), non_blocking=True)
        assert copies.waits == []
        torch.empty(3).to(CUDA)
        there.copy_(torch.empty(3))
        there.to("cpu")
        assert [name for name, _ in copies.waits] == ["aten::_to_copy", "aten::copy_", "aten::_to_copy"]
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.empty(3)
