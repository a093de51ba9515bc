"""The operator against the unfold form: `python -m cotnet.benchmarks.local_aggregation [--json FILE] [--plot FILE]`.

Forward and backward at the shapes of CoTNet-50's stages, in both memory formats. In every round each form has its
turn, so that all meet the same machine; medians. `ratio` is the unfold form's time to ours. `peak_bytes` is what was
allocated at a time beyond inputs, result and gradients, `peak_maps` the same in feature maps. On a GPU also the bytes
that must be moved in a second, as a share of what a copy in the same run moves.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final, NamedTuple

import torch
from torch.nn import functional as F

from cotnet.benchmarks import meters, report
from cotnet.ops import local_aggregation

Form = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
STAGES: Final = ("64x56", "128x28", "256x14", "512x7")  # channels x pixels
SHARE: Final = 8  # channels that share a weight group, in every stage
PEER: Final = "unfold form"
FORMATS: Final = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def unfold_form(value: torch.Tensor, weight: torch.Tensor, *, dilation: int = 1) -> torch.Tensor:
    """The definition of `cotnet.ops.local_aggregation`: unfold every neighbourhood, multiply, sum."""
    batch, channels, height, width = value.shape
    groups, taps = weight.shape[1:3]
    kernel = round(taps**0.5)
    patches = F.unfold(value, kernel, dilation=dilation, padding=dilation * (kernel // 2))
    patches = patches.reshape(batch, channels // groups, groups, taps, height, width)
    return (patches * weight.unsqueeze(1)).sum(3).reshape(value.shape)


class Tensors(NamedTuple):
    """Value and weight as a CoT block's convolutions leave them, and the gradient that comes back."""

    value: torch.Tensor
    weight: torch.Tensor
    upstream: torch.Tensor


class Times(NamedTuple):
    """One turn, in milliseconds."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


def make_tensors(stage: str, batch: int, memory_format: str, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Noise of the shapes of a stage, "CHANNELSxPIXELS"."""
    channels, pixels = map(int, stage.split("x"))
    groups, taps = channels // SHARE, 9

    def noise(planes: int) -> torch.Tensor:
        maps = torch.randn(batch, planes, pixels, pixels, dtype=dtype, device=device)
        return maps.contiguous(memory_format=FORMATS[memory_format])

    weight = noise(groups * taps).unflatten(1, (groups, taps))
    return Tensors(noise(channels).requires_grad_(), weight.requires_grad_(), noise(channels))


def turn(form: Form, tensors: Tensors) -> Times:
    """Forward and backward once, timed."""
    value, weight, upstream = tensors
    started = meters.now(value.device)
    result = form(value, weight)
    between = meters.now(value.device)
    torch.autograd.grad(result, (value, weight), upstream)
    return Times(1000 * (between - started), 1000 * (meters.now(value.device) - between))


def extra_bytes(form: Form, tensors: Tensors) -> int:
    """The most that forward and backward hold at a time beyond inputs, result and gradients."""
    value, weight, upstream = tensors
    outputs = 2 * meters.size(value) + meters.size(weight)

    def once() -> None:
        result = form(value, weight)
        gradients = torch.autograd.grad(result, (value, weight), upstream)
        del result, gradients

    return max(0, meters.peak_bytes(value.device, once) - outputs)


def moved_bytes(tensors: Tensors) -> tuple[int, int]:
    """What forward and backward must at least read and write."""
    maps, weights = meters.size(tensors.value), meters.size(tensors.weight)
    return 2 * maps + weights, 3 * maps + 2 * weights


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy of 512 MiB."""
    source = torch.empty(2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        started = meters.now(device)
        target.copy_(source)
        seconds.append(meters.now(device) - started)
    return 2 * source.numel() / median(seconds)


def compare(
    forms: Mapping[str, Form], tensors: Tensors, name: str, rounds: int, bandwidth: float | None
) -> list[report.Row]:
    """One record for each form but the peer, after `rounds` in turn and one to warm up (and compile)."""
    found: dict[str, list[Times]] = {form: [] for form in forms}
    for number in range(rounds + 1):
        for form, run in forms.items():
            times = turn(run, tensors)
            if number:
                found[form].append(times)
    theirs = median(times.both for times in found[PEER])
    records: list[report.Row] = []
    for form, turns in found.items():
        peak, ours = extra_bytes(forms[form], tensors), median(times.both for times in turns)
        times = Times(median(times.forward for times in turns), median(times.backward for times in turns))
        measured = {"milliseconds": ours, "ratio": theirs / ours, "peak_bytes": peak}
        record = {"name": name, "form": form, "peer": PEER} | measured
        record |= {"forward_ms": times.forward, "backward_ms": times.backward}
        record |= {"device": str(tensors.value.device), "dtype": str(tensors.value.dtype).removeprefix("torch.")}
        record["peak_maps"] = peak / meters.size(tensors.value)
        if bandwidth is not None and form != PEER:
            forward, backward = moved_bytes(tensors)
            record["forward_bandwidth"] = 1000 * forward / times.forward / bandwidth
            record["backward_bandwidth"] = 1000 * backward / times.backward / bandwidth
        records.append(record)
    return records


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cotnet.benchmarks.local_aggregation", description="Compare the operator with its unfold form."
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--json", type=report.output_file, help="file for the records")
    parser.add_argument("--plot", type=report.output_file, help="PNG file for the plot")
    parser.add_argument("--stages", nargs="+", default=STAGES, help="CHANNELSxPIXELS, channels a multiple of 8")
    parser.add_argument("--formats", nargs="+", default=tuple(FORMATS), choices=FORMATS, help="memory formats")
    parser.add_argument("--batch", type=int, default=256 if cuda else 16, help="images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of each form (%(default)s)")
    parser.add_argument(
        "--dtype", default="bfloat16" if cuda else "float32", choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    given = _arguments().parse_args(arguments)
    torch.set_num_threads(given.threads)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    bandwidth = copy_bandwidth(device) if device.type == "cuda" else None
    rows: list[report.Row] = []
    for stage in given.stages:
        for memory_format in given.formats:
            torch.compiler.reset()  # a case is a compilation of its own, and does not count as a recompilation
            compiled = torch.compile(local_aggregation, fullgraph=True, dynamic=False)
            forms: dict[str, Form] = {"eager": local_aggregation, "compiled": compiled, PEER: unfold_form}
            tensors = make_tensors(stage, given.batch, memory_format, getattr(torch, given.dtype), device)
            name = f"{given.batch}x{stage}x{stage.partition('x')[2]} {memory_format}"
            rows += compare(forms, tensors, name, given.rounds, bandwidth)
    report.print_table(rows)
    if given.json:
        report.write_json(given.json, rows)
        sys.stdout.write(f"{given.json}\n")
    if given.plot:
        bars: dict[str, dict[str, float]] = {}
        for row in rows:
            shape, _, memory_format = row["name"].partition(" ")
            if row["form"] != PEER:
                bars.setdefault(f"{row['form']}, {memory_format}", {})[shape] = row["ratio"]
        title = "Local aggregation, forward and backward: times as fast as the unfold form"
        report.draw_bars(given.plot, bars, title=title, unit="ratio")
        sys.stdout.write(f"{given.plot}\n")


if __name__ == "__main__":
    main()
