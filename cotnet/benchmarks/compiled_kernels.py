"""What the compiler makes of the operator's Triton kernels: instructions, registers, spills, widths of loads.

No GPU is needed: Triton compiles what a launch would start, for tensors without memory. `cuobjdump` of Triton's wheel
lists the machine code (SASS). For K = 3 the kernels have no loop, so a warp executes each instruction once; for larger
K a loop over the kernel's lines is counted once.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
import triton
from triton.backends.compiler import GPUTarget

from cotnet.benchmarks.operator_tensors import LAYOUTS, make_tensors
from cotnet.ops.local_aggregation_triton import Launch, backward_launches, forward_launches

INSTRUCTION: Final = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", re.MULTILINE)
USAGE: Final = re.compile(r"REG:(\d+) STACK:(\d+)")
WIDTHS: Final = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes that a thread loads; else 4


class CompileTarget:
    """What Triton's compiler asks a driver, for a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """A number of its own for each target: Triton keeps one compiled kernel for each device."""
        return self.capability

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        """No stream: nothing is started."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Compute capability, and threads of a warp."""
        return GPUTarget("cuda", self.capability, 32)


def compiled_code(launch: Launch, capability: int) -> bytes:
    """The machine code of a launch's kernel for compute capability `capability` / 10."""
    triton.runtime.driver.set_active(CompileTarget(capability))
    return launch.kernel.warmup(grid=(launch.programs,), **launch.arguments).asm["cubin"]


def counts(code: bytes) -> dict[str, Any]:
    """Instructions, registers of a thread, bytes spilled, and loads by their width in bytes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        sass, usage = (_cuobjdump(option, file.name) for option in ("-sass", "-res-usage"))
    names = INSTRUCTION.findall(sass)
    names = names[: len(names) - names[::-1].index("EXIT")]  # then padding
    loads = Counter(WIDTHS.get(name.split(".")[-1], 4) for name in names if name.startswith("LDG"))
    found = USAGE.search(usage)
    assert found, usage
    return {"instructions": len(names), "registers": int(found[1]), "spilled_bytes": int(found[2]), "loads": loads}


def _cuobjdump(option: str, file: str) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([program, option, file], check=True, capture_output=True, text=True).stdout


def launches(stage: str, layout: str, dtype: torch.dtype, kernel_size: int) -> list[Launch]:
    """Forward and backward of 256 images at a stage, "CHANNELSxPIXELS", in one of LAYOUTS' layouts."""
    value, weight, upstream = make_tensors(stage, 256, layout, dtype, torch.device("meta"), kernel_size=kernel_size)
    gradients = torch.empty_like(value), torch.empty_like(weight)
    forward = forward_launches(value, weight, value, 1)
    return forward + backward_launches(upstream, value, weight, gradients, dilation=1)


def measure(
    targets: Sequence[str],
    stages: Sequence[str],
    formats: Sequence[str],
    dtypes: Sequence[str],
    kernel_sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """A record for each target ("sm_90"), stage, layout, dtype, kernel size and kernel."""
    layouts = [layout for name in formats for layout in LAYOUTS[name]]
    rows: list[dict[str, Any]] = []
    for target, stage, layout, dtype, size in product(targets, stages, layouts, dtypes, kernel_sizes):
        names = {"target": target, "stage": stage, "layout": layout, "dtype": dtype, "K": size}
        for part, launch in zip(
            ("forward", "backward"), launches(stage, layout, getattr(torch, dtype), size), strict=True
        ):
            found = counts(compiled_code(launch, int(target.removeprefix("sm_"))))
            loads = found.pop("loads")
            found["loads"] = ", ".join(f"{loads[width]} x {width} B" for width in sorted(loads))
            rows.append({**names, "kernel": part, **found})
    return rows
