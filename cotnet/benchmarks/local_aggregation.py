"""The operator against the unfold form: `python -m cotnet.benchmarks.local_aggregation [--json FILE] [--plot FILE]`.

With `--compile-for sm_90` nothing is timed: it compiles the Triton kernels for that GPU, without one, and prints the
instructions of a warp, the registers of a thread, what they spill, and the widths of their loads.

Forward and backward at the shapes of CoTNet-50's stages, in both memory formats. The forms take turns; medians.
`ratio` is the unfold form's time over ours. `peak_bytes` is the most that is allocated at a time beyond inputs, result
and gradients; `peak_maps` is the same in feature maps. On a GPU also the bytes that must be moved per second, as a
share of what a copy in the same run moves.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product
from statistics import median
from typing import Any, Final

import torch
from torch.nn import functional as F

from cotnet.benchmarks import common
from cotnet.benchmarks.operator_tensors import FORMATS, LAYOUTS, Tensors, make_tensors
from cotnet.ops import local_aggregation

Form = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
STAGES: Final = ("64x56", "128x28", "256x14", "512x7")  # channels x pixels
PEER: Final = "unfold form"
OURS: Final = ("eager", "compiled")


def unfold_form(value: torch.Tensor, weight: torch.Tensor, *, dilation: int = 1) -> torch.Tensor:
    """The definition of `cotnet.ops.local_aggregation`: unfold every neighbourhood, multiply, sum."""
    batch, channels, height, width = value.shape
    groups, kernel_positions = weight.shape[1:3]
    kernel = round(kernel_positions**0.5)
    patches = F.unfold(value, kernel, dilation=dilation, padding=dilation * (kernel // 2))
    patches = patches.reshape(batch, channels // groups, groups, kernel_positions, height, width)
    return (patches * weight.unsqueeze(1)).sum(3).reshape(value.shape)


def timed(form: Form, tensors: Tensors) -> tuple[float, float]:
    """Milliseconds of forward and of backward."""
    value, weight, upstream = tensors
    started = common.now(value.device)
    result = form(value, weight)
    between = common.now(value.device)
    torch.autograd.grad(result, (value, weight), upstream)
    return 1000 * (between - started), 1000 * (common.now(value.device) - between)


def extra_bytes(form: Form, tensors: Tensors) -> int:
    """The most that forward and backward hold at a time beyond inputs, result and gradients."""
    peak = common.peak_bytes(tensors.value.device, partial(timed, form, tensors))
    return max(0, peak - 2 * tensors.value.nbytes - tensors.weight.nbytes)


def moved_bytes(tensors: Tensors) -> tuple[int, int]:
    """The least that forward and backward read and write."""
    maps, weights = tensors.value.nbytes, tensors.weight.nbytes
    return 2 * maps + weights, 3 * maps + 2 * weights


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy of 512 MiB."""
    source = torch.empty(2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median(common.seconds(lambda: target.copy_(source), device) for _ in range(10))


def measure_forms(
    forms: Mapping[str, Form], tensors: Tensors, name: str, *, rounds: int, bandwidth: float | None
) -> list[dict[str, Any]]:
    """One record for each form, after `rounds` in turn and one to warm up (and compile)."""
    found = common.in_turns({form: partial(timed, run, tensors) for form, run in forms.items()}, rounds)
    totals = {form: median(map(sum, turns)) for form, turns in found.items()}
    value, records = tensors.value, []
    for form, turns in found.items():
        peak, (forward, backward) = extra_bytes(forms[form], tensors), map(median, zip(*turns, strict=True))
        record: dict[str, Any] = {"name": name, "form": form, "peer": PEER, "milliseconds": totals[form]}
        record |= {"ratio": totals[PEER] / totals[form], "peak_bytes": peak}
        record |= {"forward_ms": forward, "backward_ms": backward, "device": str(value.device)}
        record |= {"dtype": str(value.dtype).removeprefix("torch."), "peak_maps": peak / value.nbytes}
        if bandwidth is not None and form != PEER:
            for part, moved in zip(("forward", "backward"), moved_bytes(tensors), strict=True):
                record[f"{part}_bandwidth"] = 1000 * moved / record[f"{part}_ms"] / bandwidth
        records.append(record)
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser, cuda = common.options("local_aggregation", "Our operator and its unfold form."), torch.cuda.is_available()
    dtypes, targets = ("float32", "bfloat16", "float16"), ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
    parser.add_argument("--stages", nargs="+", help="CHANNELSxPIXELS, channels a multiple of 8")
    parser.add_argument("--formats", nargs="+", default=tuple(FORMATS), choices=FORMATS, help="memory formats")
    parser.add_argument("--forms", nargs="+", default=OURS, choices=OURS, help="beside the unfold form")
    parser.add_argument("--batch", type=int, default=256 if cuda else 16, help="images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of each form (%(default)s)")
    parser.add_argument("--dtype", choices=dtypes, help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU (%(default)s)")
    parser.add_argument("--compile-for", nargs="+", choices=targets, help="count the kernels' instructions; no GPU")
    parser.add_argument("--kernel-sizes", nargs="+", type=int, default=(3, 5, 7), help="K, with --compile-for")
    given = parser.parse_args(arguments)
    if not given.compile_for:
        time_forms(given)
        return
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("--compile-for needs triton, and TRITON_INTERPRET must not be 1")
    from cotnet.benchmarks import compiled_kernels

    stages, counted = given.stages or STAGES[:1], [given.dtype] if given.dtype else dtypes[:2]
    rows = compiled_kernels.measure(given.compile_for, stages, given.formats, counted, given.kernel_sizes)
    common.finish(rows, given.json)


def time_forms(given: argparse.Namespace) -> None:
    """Time the forms and write the records."""
    device = common.first_device()
    torch.set_num_threads(given.threads)
    bandwidth = copy_bandwidth(device) if device.type == "cuda" else None
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    rows: list[dict[str, Any]] = []
    layouts = given.formats if device.type == "cpu" else [one for name in given.formats for one in LAYOUTS[name]]
    for stage, layout in product(given.stages or STAGES, layouts):
        torch.compiler.reset()  # each case is compiled anew and does not count as a recompilation
        compiled = torch.compile(local_aggregation, fullgraph=True, dynamic=False)
        known: dict[str, Form] = {"eager": local_aggregation, "compiled": compiled, PEER: unfold_form}
        forms = {form: known[form] for form in (*given.forms, PEER)}
        tensors = make_tensors(stage, given.batch, layout, dtype, device)
        name = f"{given.batch}x{stage}x{stage.partition('x')[2]} {layout}"
        rows += measure_forms(forms, tensors, name, rounds=given.rounds, bandwidth=bandwidth)
    common.finish(rows, given.json)
    bars: dict[str, dict[str, float]] = {}
    for row in rows:
        shape, _, layout = row["name"].partition(" ")
        if row["form"] != PEER:
            bars.setdefault(f"{row['form']}, {layout}", {})[shape] = row["ratio"]
    title = "Local aggregation, forward and backward: times as fast as the unfold form"
    common.draw_bars(given.plot, bars, title=title, unit="ratio")


if __name__ == "__main__":
    main()
