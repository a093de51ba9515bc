"""An estimate, not a measurement: what limits a training step on a GPU.

python -m cotnet.benchmarks.roofline [--device h100] [--models NAME ...] [--batch N ...] [--json FILE]

Runs a step (forward, loss, backward, SGD with momentum) on tensors without memory and records its operators. Each takes
the longer of its bytes at the memory's bandwidth and its FLOPs at the peak rate; the host needs --host-us to start one.
Bytes are an operator's inputs and outputs, in bf16 autocast, eager, without reuse in the cache. The larger of the
device's and the host's total is the least time a step can take. On any machine, a few seconds for each net.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cotnet.benchmarks import common
from cotnet.benchmarks.nets import build_net
from cotnet.commands.program import one_line
from cotnet.engine.precision import Precision
from cotnet.errors import InputError
from cotnet.models import contextual

DEVICES: Final = {  # bytes/s and dense bf16 FLOP/s by the data sheets of the SXM boards
    "a100": (2.04e12, 312e12),
    "h100": (3.35e12, 989e12),
    "h200": (4.8e12, 989e12),
}
MODELS: Final = ("cotnet50", "se_cotnetd_152", "resnet50")
HOST_US: Final = 10.0
_NO_KERNELS: Final = (
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view"),
    *("device", "_record_function_enter_new", "_record_function_exit"),
)


@dataclass(frozen=True)
class OperatorCost:
    """What one operator moves and computes."""

    name: str
    bytes: int
    flops: int


class OperatorTrace(TorchDispatchMode):
    """Records the operators that start a kernel; views and allocations do not. FLOPs are those of matrix products,
    convolutions and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[OperatorCost] = []

    @property
    def launches(self) -> int:
        """Kernels, if every operator starts one."""
        return len(self.operators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if func.is_view or packet.__name__ in _NO_KERNELS:
            return result
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        written = result
        if not func._schema.returns:  # in place, such as the _foreach operators
            mutable = [argument.name for argument in func._schema.arguments if argument.alias_info]
            written = [given.get(name) for name in mutable]
        flops = flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
        self.operators.append(OperatorCost(packet.__name__, moved((given, written)), flops))
        return result


def moved(tree: Any) -> int:
    """Bytes of the tensors in a tree; a dimension that is only expanded is read once."""
    total = 0
    for tensor in tree_leaves(tree):
        if isinstance(tensor, Tensor):
            sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
            total += torch.Size(sizes).numel() * tensor.element_size() if tensor.numel() else 0
    return total


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """The least time of a step on a device: `gpu_ms` of its kernels, `host_ms` of starting them; `limit` is bandwidth,
    compute or launches."""

    launches: int
    gigabytes: float
    teraflops: float
    gpu_ms: float
    host_ms: float
    limit: str


def estimate(
    operators: Sequence[OperatorCost], *, bandwidth: float, peak: float, host_us: float = HOST_US
) -> StepEstimate:
    """Operators on a device of `bandwidth` bytes/s and `peak` FLOP/s."""
    times = [(operator.bytes / bandwidth, operator.flops / peak) for operator in operators]
    moving = sum(memory for memory, compute in times if memory >= compute)
    computing = sum(compute for memory, compute in times if compute > memory)
    host = len(operators) * host_us / 1e6
    limit = "bandwidth" if moving >= computing else "compute"
    return StepEstimate(
        launches=len(operators),
        gigabytes=sum(operator.bytes for operator in operators) / 1e9,
        teraflops=sum(operator.flops for operator in operators) / 1e12,
        gpu_ms=1000 * (moving + computing),
        host_ms=1000 * host,
        limit="launches" if host > moving + computing else limit,
    )


def trace(task: Callable[[], object]) -> list[OperatorCost]:
    """The operators of a call."""
    with OperatorTrace() as found:
        task()
    return found.operators


def trace_training(name: str, batch: int, size: int) -> list[OperatorCost]:
    """The operators of one training step of a net, without its memory. Autocast is the CPU's: what a GPU keeps in
    float32 differs in a few operators on small tensors."""
    precision = Precision(name="bf16", device=torch.device("cpu"))
    with FakeTensorMode(), _kernels_of_a_gpu():
        model = build_net(name, size).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
        images = torch.empty(batch, 3, size, size)
        targets = torch.empty(batch, dtype=torch.int64)

        def step() -> None:
            how: dict[str, Any] = {"precision": precision, "scaler": torch.amp.GradScaler("cpu", enabled=False)}
            common.bare_step(model, optimizer, images, targets, **how)

        step()  # the optimizer's state exists from here on
        return trace(step)


@contextmanager
def _kernels_of_a_gpu() -> Iterator[None]:
    """CoT's blocks call the operator of the Triton kernels, which a trace counts as one."""
    from cotnet.ops.local_aggregation_triton import aggregate

    def local_aggregation(value: Tensor, weight: Tensor, *, dilation: int = 1) -> Tensor:
        result: Tensor = aggregate(value, weight.to(value.dtype), dilation)
        return result

    kept, contextual.local_aggregation = contextual.local_aggregation, local_aggregation
    try:
        yield
    finally:
        contextual.local_aggregation = kept


def device_of(given: argparse.Namespace) -> tuple[str, float, float]:
    """Name, bytes/s and FLOP/s of the options."""
    if (given.bandwidth is None) != (given.tflops is None):
        raise InputError("--bandwidth and --tflops belong together; give both, or --device NAME")
    if given.bandwidth is not None:
        if min(given.bandwidth, given.tflops) <= 0:
            raise InputError("--bandwidth and --tflops must be positive")
        return f"{given.bandwidth:g} TB/s, {given.tflops:g} TFLOP/s", given.bandwidth * 1e12, given.tflops * 1e12
    return (given.device, *DEVICES[given.device])


def main(arguments: Sequence[str] | None = None) -> None:
    """StepEstimate, print, write; exits with 2 and one line for wrong settings."""
    parser = common.options("roofline", "An estimate of the least time of a training step on a GPU.", plot=False)
    parser.add_argument("--device", choices=DEVICES, default="h100", help="by its data sheet (%(default)s)")
    parser.add_argument("--bandwidth", type=float, help="of another device: TB/s, with --tflops")
    parser.add_argument("--tflops", type=float, help="of another device: dense bf16, with --bandwidth")
    parser.add_argument("--models", nargs="+", default=MODELS, help="NAME of ours, torchvision:NAME, timm:NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[80, 256])
    parser.add_argument("--size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--host-us", type=float, default=HOST_US, help="of the host for an operator (%(default)s)")
    given = parser.parse_args(arguments)
    rows = []
    with one_line(keep=False):
        device, bandwidth, peak = device_of(given)
        if min(*given.batch, given.size) < 1 or given.host_us < 0:
            raise InputError("--batch and --size must be at least 1, --host-us at least 0")
        for name in given.models:
            for batch in given.batch:
                common.progress(f"{name}, batch {batch}")
                operators = trace_training(name, batch, given.size)
                found = estimate(operators, bandwidth=bandwidth, peak=peak, host_us=given.host_us)
                rate = {"images_per_second_at_most": 1000 * batch / max(found.gpu_ms, found.host_ms)}
                rows.append({"name": name, "device": device, "batch": batch, **vars(found), **rate})
    common.finish(rows, given.json)


if __name__ == "__main__":
    main()
