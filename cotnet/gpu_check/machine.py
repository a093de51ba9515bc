"""The machine: what CUDA runs and Triton need, and the tests that need a GPU."""

import time
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from cotnet.benchmarks.local_aggregation import unfold_form
from cotnet.benchmarks.operator_tensors import make_tensors
from cotnet.engine.gpus import require_usable_gpus
from cotnet.errors import InputError
from cotnet.gpu_check.stage import ROOT, Bench, Claim, run_python
from cotnet.ops import TRITON, local_aggregation
from cotnet.ops.toolchain import missing_for_kernels
from cotnet.reporting.environment import driver, versions


def environment(bench: Bench) -> Iterator[Claim]:
    """Compiler, headers, driver, bf16, and the first launch of a Triton kernel."""
    lacking = missing_for_kernels()
    claim = "a C compiler and Python's headers, with which Triton builds launchers"
    yield Claim(claim, f"it needs {lacking}" if lacking else "both are there", bench.on_gpu(not lacking))
    found = ", ".join(f"{name} {number}" for name, number in versions(("torch", "triton", "numpy")).items())
    yield usable_driver(bench, f"driver {driver() or 'none'}, {found}")
    if bench.gpu:
        gpu = torch.cuda.get_device_properties(bench.device)
        figure = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        yield Claim("bf16", figure, (gpu.major, gpu.minor) >= (8, 0))
    value, weight, _ = make_tensors("64x14", 2, "contiguous", torch.float32, bench.device)
    started = time.perf_counter()
    difference = (local_aggregation(value, weight) - unfold_form(value, weight)).abs().max().item()
    form = "Triton's kernel" if TRITON else "the PyTorch form"
    figure = f"{form}, {time.perf_counter() - started:.1f} s, largest difference {difference:.1e}"
    passed = difference < 1e-4 and (TRITON or not bench.gpu)
    yield Claim("the operator's first launch gives the sums of its definition", figure, passed)


def usable_driver(bench: Bench, figure: str) -> Claim:
    """Whether torch can use the driver. False also without a GPU, if there is a driver that torch cannot use."""
    claim = "a driver for torch's CUDA"
    try:
        require_usable_gpus()
    except InputError as error:
        return Claim(claim, f"{figure}: {error}", passed=False)
    return Claim(claim, figure, bench.on_gpu(bench.gpu))


def gpu_tests(bench: Bench) -> Iterator[Claim]:
    """pytest -m "gpu and not long"."""
    claim, folder = "every test marked gpu passes, but for the long ones", "tests" if bench.gpu else "tests/ops"
    if not (ROOT / folder).is_dir() or find_spec("pytest") is None:
        yield Claim(claim, "the tests or pytest are not installed here", None)
        return
    out = run_python("-m", "pytest", "-q", "-m", "gpu and not long", "-p", "no:cacheprovider", folder, seconds=300)
    last = out.strip().splitlines()[-1]
    yield Claim(claim, last, bench.on_gpu(" passed" in last))
