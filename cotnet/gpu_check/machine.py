"""The machine: what CUDA runs and Triton need, and the tests that need a GPU."""

import os
import shutil
import sysconfig
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from cotnet.benchmarks.local_aggregation import make_tensors, unfold_form
from cotnet.gpu_check.stage import ROOT, Bench, Claim, run_python
from cotnet.ops import local_aggregation
from cotnet.reporting.environment import driver, versions


def environment(bench: Bench) -> Iterator[Claim]:
    """Compiler, headers, driver, bf16, and the first launch of a Triton kernel."""
    names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    yield Claim("a C compiler, with which Triton builds launchers", compiler or "none", bench.on_gpu(bool(compiler)))
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    there = header.exists()
    yield Claim("Python.h", str(header) if there else f"{header} is missing", bench.on_gpu(there))
    found = ", ".join(f"{name} {number}" for name, number in versions(("torch", "triton", "numpy")).items())
    yield Claim("a driver for torch's CUDA", f"driver {driver() or 'none'}, {found}", bench.on_gpu(bench.gpu))
    if bench.gpu:
        gpu = torch.cuda.get_device_properties(bench.device)
        figure = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        yield Claim("bf16", figure, (gpu.major, gpu.minor) >= (8, 0))
    value, weight, _ = make_tensors("64x14", 2, "contiguous", torch.float32, bench.device)
    started = time.perf_counter()
    difference = (local_aggregation(value, weight) - unfold_form(value, weight)).abs().max().item()
    figure = f"{time.perf_counter() - started:.1f} s, largest difference {difference:.1e}"
    yield Claim("the operator's first launch gives the sums of its definition", figure, difference < 1e-4)


def gpu_tests(bench: Bench) -> Iterator[Claim]:
    """pytest -m gpu."""
    claim, folder = "every test marked gpu passes", "tests" if bench.gpu else "tests/ops"
    if not (ROOT / folder).is_dir() or find_spec("pytest") is None:
        yield Claim(claim, "the tests or pytest are not installed here", None)
        return
    out = run_python("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", folder, seconds=300)
    last = out.strip().splitlines()[-1]
    yield Claim(claim, last, bench.on_gpu(" passed" in last))
