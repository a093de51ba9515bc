"""Speed or memory of whole nets: `python -m cotnet.benchmarks.nets [--measure memory] [--json FILE] [--plot FILE] ...`.

speed: the nets of a group (the models and their peer, in each memory format) are in memory together and take turns;
medians. `ratio` is our images per second over the peer's; above 1 is faster.
memory: `peak_bytes` is the most that a training step (or an inference) holds, with weights, gradients, momentum and
images. `ratio` is ours over the peer's; below 1 is less.
On a GPU: --dtype bf16 --format channels_last --compile.
"""

import argparse
import inspect
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

import torch
from matplotlib.ticker import LogLocator
from torch import nn

from cotnet import models
from cotnet.benchmarks import common
from cotnet.commands.program import one_line
from cotnet.engine.compilation import compiled, require_compiler
from cotnet.engine.precision import DTYPES, Precision
from cotnet.errors import InputError
from cotnet.figures import figure, write_labels
from cotnet.models import table
from cotnet.models.checkpointing import checkpoint_stages
from cotnet.models.fusing import fuse

EXTERNAL: Final = {"torchvision": models.torchvision_model, "timm": models.timm_model}
LAYOUTS: Final = ("contiguous", "channels_last")
MEASURES: Final = {"speed": ("images_per_second", "images/s"), "memory": ("peak_mib", "MiB")}
MEASURED: Final = {"milliseconds", "images_per_second", "peak_bytes", "peak_mib", "peer", "ratio"}
FAMILIES: Final = {
    "cot": "CoTNet",
    "bot": "BoTNet",
    "pvt_v2": "PVTv2",
    "pvt": "PVT",
    **dict.fromkeys(("stand_alone", "lr_net", "halo", "aa_", "lambda", "non_local"), "other attention"),
    **dict.fromkeys(("resne", "sknet"), "ResNet and descendants"),
}  # the first part of a name that fits
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class NetCase:
    """A net and how it runs, as its record says it: `name` of `cotnet.models`, torchvision:NAME or timm:NAME."""

    name: str
    device: str
    batch: int
    size: int
    mode: str
    dtype: str
    memory_format: str
    compiled: bool
    fused: bool
    checkpointing: list[int]
    cpu_time: bool = False


class BenchedNet:
    """A net in memory with a batch and an optimizer; `model` instead of the one that `case.name` names."""

    def __init__(self, case: NetCase, device: torch.device, *, model: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.training = case.mode == "train"
        precision = Precision(name=case.dtype, device=device, channels_last=case.memory_format == "channels_last")
        precision.set_up_process()
        model = model or build_net(case.name, case.size)
        if case.checkpointing:
            checkpoint_stages(model, tuple(case.checkpointing))
        self.model = precision.to_device(fuse(model) if case.fused else model).train(self.training)
        self.run = compiled(self.model) if case.compiled else self.model
        images = torch.randn(case.batch, 3, case.size, case.size, device=device, dtype=precision.parameters)
        self.images = images.to(memory_format=precision.layout)
        self.targets = torch.randint(1000, (case.batch,), device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.precision, self.scaler = precision, precision.scaler()

    def step(self) -> None:
        """Forward; in training also loss, backward and the optimizer's step."""
        if self.training:
            how: dict[str, Any] = {"precision": self.precision, "scaler": self.scaler}
            common.bare_step(self.run, self.optimizer, self.images, self.targets, **how)
        else:
            with torch.inference_mode(), self.precision.autocast():
                self.run(self.images)


def build_net(name: str, size: int) -> nn.Module:
    """The net with fresh weights and position tables of this size; InputError for an unknown name."""
    source, _, other = name.rpartition(":")
    if source in EXTERNAL:
        return EXTERNAL[source](model_name=other)
    if source or name not in models.__all__ or name.endswith("_model"):
        raise InputError(f"{name} is no model; give one of cotnet.models, torchvision:NAME or timm:NAME")
    constructor = getattr(models, name)
    sized = "image_size" in inspect.signature(constructor).parameters
    return cast(nn.Module, constructor(**({"image_size": size} if sized else {})))


def measure_speed(
    cases: Sequence[NetCase], rounds: int, device: torch.device, *, given: Mapping[str, nn.Module] | None = None
) -> list[Record]:
    """Milliseconds and images per second of each, of CPU time in one thread if the cases say so. `given`: models by the
    names of their cases, instead of nets."""
    nets = {
        f"{case.name}@{case.size} {case.memory_format}": BenchedNet(case, device, model=(given or {}).get(case.name))
        for case in cases
    }
    clock = common.one_thread_seconds if cases[0].cpu_time else partial(common.seconds, device=device)
    times = common.in_turns({name: partial(clock, net.step) for name, net in nets.items()}, rounds)
    return [
        {**asdict(case), "milliseconds": 1000 * seconds, "images_per_second": case.batch / seconds}
        for case, seconds in zip(cases, map(median, times.values()), strict=True)
    ]


def measure_memory(case: NetCase, device: torch.device) -> Record:
    """Peak bytes of the second step, when the optimizer's state exists."""
    net = BenchedNet(case, device)
    net.step()
    state = [value for values in net.optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    held = (*net.model.parameters(), *net.model.buffers(), *state, net.images, net.targets)
    peak = sum(tensor.nbytes for tensor in held) + common.peak_bytes(device, net.step)
    return {**asdict(case), "peak_bytes": peak, "peak_mib": peak / 2**20}


def compared(records: Sequence[Record], peer: str, value: str) -> list[Record]:
    """The records, each but the peer's with `peer` and its `ratio` to the peer's value in the same memory format."""
    theirs = {record["memory_format"]: record[value] for record in records if record["name"] == peer}
    for record in records:
        if record["name"] != peer:
            record |= {"peer": peer, "ratio": record[value] / theirs[record["memory_format"]]}
    return list(records)


def groups(given: argparse.Namespace, device: torch.device) -> Iterator[list[NetCase]]:
    """The nets that are compared: the models and their peer, of one size and batch, in each memory format."""
    if given.fuse and given.mode == "train":
        raise InputError("--fuse is for --mode inference")
    if given.checkpointing and given.mode != "train":
        raise InputError("--checkpointing is for --mode train")
    if min(*given.size, *given.batch, given.rounds) < 1:
        raise InputError("--size, --batch and --rounds must be at least 1")
    if given.cpu_time and device.type != "cpu":
        raise InputError("--cpu-time is for a CPU; leave it out")
    if given.compile:
        require_compiler(device, "--compile")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    shared = {"device": where, "mode": given.mode, "dtype": given.dtype, "compiled": given.compile}
    shared |= {"cpu_time": given.cpu_time}
    layouts = LAYOUTS if given.format == "both" else (given.format,)
    nets = [(given.models, size) for size in given.size]
    if given.zoo:
        nets = [([zoo], 224) for zoo, known in table.TABLE.items() if known and known.top1]
    for (names, size), batch in itertools.product(nets, given.batch):
        cases = []
        sized = dict.fromkeys((name, own or size) for name, own in [*names, given.peer])
        for layout, (name, own) in itertools.product(layouts, sized):
            ours = {"fused": given.fuse, "checkpointing": given.checkpointing}
            how = shared | (ours if ":" not in name else {"fused": False, "checkpointing": []})
            cases.append(NetCase(name=name, batch=batch, size=own, memory_format=layout, **how))
        yield cases


def net(text: str) -> tuple[str, int | None]:
    """NAME or NAME@PIXELS of the command line."""
    name, _, pixels = text.partition("@")
    return name, int(pixels) if pixels else None


def earlier(path: Path | None, rows: list[Record]) -> list[Record]:
    """The records of a file that are of other nets or settings than the new rows."""
    if not path or not path.exists():
        return []
    new = [_settings(row) for row in rows]
    return [row for row in json.loads(path.read_text())["records"] if _settings(row) not in new]


def _settings(row: Record) -> Record:
    """What was measured. Files of older versions lack some keys or have more, such as `recompute`."""
    return {key: value for key, value in row.items() if key not in MEASURED and value}


def draw_growth(png: Path, rows: list[Record], value: str, unit: str) -> None:
    """Panels over batch, image size and depth; a line per net (over depth: family), mode and memory format."""
    labels = {"batch": "images in a batch", "size": "pixels", "depth": "layers (the number in the name)"}
    with figure(png, (13.5, 3.7), columns=3, dpi=130) as (_, panels):
        for axes, axis in zip(panels, labels, strict=True):
            lines = growth_lines(rows, axis, value)
            for fixed, points in sorted(lines.items()):
                axes.plot(*zip(*sorted(points.items()), strict=True), "o-", markersize=3, label=", ".join(fixed))
            axes.set(xlabel=labels[axis], ylabel=unit, ylim=(0, None))
            ticks = sorted({x for points in lines.values() for x in points})
            axes.set_xscale("log", base=2) if axis == "batch" else None
            axes.set_xticks(ticks, [str(x) for x in ticks])
            axes.tick_params(labelsize=8)
            if lines:
                axes.legend(fontsize=6)


def growth_lines(rows: list[Record], axis: str, value: str) -> dict[tuple[str, ...], dict[int, float]]:
    """{what is the same along a line: {x: value}}, of at least two points; over depth, of the most common settings. The
    depth of cotnet50 is 50, its family cotnet."""
    lines: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
    for row in rows:
        fixed = {key: text for key, text in _settings(row).items() if key != "device"}
        if axis == "depth" and (digits := re.search(r"\d{2,}", row["name"])):
            fixed |= {"name": row["name"].replace(digits[0], ""), "depth": int(digits[0])}
        if x := fixed.pop(axis, None):
            same = (text if isinstance(text, str) else f"{key} {text}" for key, text in fixed.items())
            lines[tuple(same)][x] = row[value]
    lines = {fixed: points for fixed, points in lines.items() if len(points) > 1}
    if axis == "depth" and lines:
        common = Counter(fixed[1:] for fixed, points in lines.items() for _ in points).most_common(1)[0][0]
        lines = {fixed: points for fixed, points in lines.items() if fixed[1:] == common}
    return lines


def draw_accuracy(png: Path, rows: list[Record], peer: str) -> None:
    """Time of an image, as a multiple of the peer's in the same run, against published top-1, a colour per family."""
    families: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    alike = (row for row in rows if "ratio" in row and row.get("cpu_time") == rows[-1].get("cpu_time"))
    for row in sorted(alike, key=lambda row: -row["ratio"]):
        known = table.TABLE.get((row["name"], row["size"]))
        if known and known.top1:
            family = next((words for part, words in FAMILIES.items() if part in row["name"]), row["name"])
            label = row["name"] if row["size"] == 224 else f"{row['name']}@{row['size']}"
            families[family].append((1 / row["ratio"], known.top1, label))
    with figure(png, (11, 6.5), dpi=130) as (page, (axes,)):
        for family, points in families.items():
            axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=18, label=family)
        axes.set(xlabel=f"time of an image, {peer} = 1", ylabel="published top-1, %", xscale="log")
        axes.margins(x=0.15)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7, loc="lower right")
        page.draw_without_rendering()  # the axes have their place now
        write_labels(axes, [point for points in families.values() for point in points])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write; exits with 2 and one line for wrong settings."""
    parser = common.options("nets", "Speed or memory of nets; --json keeps the file's records of other settings.")
    parser.add_argument("--measure", choices=MEASURES, default="speed")
    names = "NAME of ours, torchvision:NAME, timm:NAME; with a size of its own NAME@PIXELS"
    parser.add_argument("--models", nargs="+", type=net, default=[("cotnet50", None)], help=names)
    parser.add_argument("--peer", type=net, default="torchvision:resnet50", help="compare with it (%(default)s)")
    parser.add_argument("--zoo", action="store_true", help="every model with a published top-1, at its size")
    parser.add_argument("--batch", nargs="+", type=int, default=[16])
    parser.add_argument("--size", nargs="+", type=int, default=[224])
    parser.add_argument("--mode", choices=("train", "inference"), default="train")
    parser.add_argument("--dtype", choices=sorted(set(DTYPES)), default="fp32")
    parser.add_argument("--format", choices=(*LAYOUTS, "both"), default="contiguous", help="memory format")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fuse", action="store_true", help="inference: fold BatchNorm (ours only)")
    stages = "training: recompute the activations of these stages (ours only)"
    parser.add_argument("--checkpointing", nargs="+", type=int, default=[], choices=(1, 2, 3, 4), help=stages)
    parser.add_argument("--cpu-time", action="store_true", help="speed: CPU time of one thread, on a busy machine")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each net (%(default)s)")
    given = parser.parse_args(arguments)
    device, (value, unit) = common.first_device(), MEASURES[given.measure]
    rows: list[Record] = []
    speed = given.measure == "speed"
    with one_line(keep=False):
        for cases in groups(given, device):
            common.progress(f"{cases[0].name}, batch {cases[0].batch}, {cases[0].size} px")
            found = measure_speed(cases, given.rounds, device) if speed else [measure_memory(c, device) for c in cases]
            rows += compared(found, given.peer[0], value)
    before = earlier(given.json, rows)
    common.finish(rows, given.json, kept=before)
    if given.plot and given.zoo:
        draw_accuracy(given.plot, before + rows, given.peer[0])
    elif given.plot:
        draw_growth(given.plot, before + rows, value, unit)


if __name__ == "__main__":
    main()
