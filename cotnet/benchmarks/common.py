"""What benchmarks share: time, memory, turns, photographs, a bare step; options, the machine, a table, JSON, bars."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cotnet.engine.precision import Precision
from cotnet.errors import DataError
from cotnet.figures import figure
from cotnet.files import write_text
from cotnet.reporting.environment import machine
from cotnet.reporting.terminal import print_table

T = TypeVar("T")
Row = Mapping[str, Any]


class EpochFigures(NamedTuple):
    """One timed epoch."""

    images_per_second: float
    cpu_ms_per_image: float


def first_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def now(device: torch.device) -> float:
    """Seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(task: Callable[[], object], device: torch.device) -> float:
    """How long a call takes."""
    started = now(device)
    task()
    return now(device) - started


def one_thread_seconds(task: Callable[[], object]) -> float:
    """CPU time of a call that uses one thread: hardly depends on what else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    task()
    took = time.process_time() - started
    torch.set_num_threads(threads)
    return took


def cpu_seconds() -> float:
    """CPU time so far of this process, all its threads and its living children."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread or child that has just ended
            for child in (task / "children").read_text().split():
                ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def timed(task: Callable[[], int], device: torch.device) -> EpochFigures:
    """Images per second and CPU time of a task that returns how many images it has worked on."""
    cpu, started = cpu_seconds(), time.perf_counter()
    images = task()
    seconds = now(device) - started
    return EpochFigures(images / seconds, 1000 * (cpu_seconds() - cpu) / images)


def photographs(count: int, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Images of this width and height, 4:3: crops of the two photographs that scikit-learn ships, in turns. The same
    ones at every call; DataError without scikit-learn."""
    try:
        from sklearn.datasets import load_sample_images
    except ModuleNotFoundError as error:
        raise DataError("photographs come with scikit-learn, which is missing; pip install scikit-learn") from error
    sources = [Image.fromarray(array) for array in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(count):
        source = sources[number % len(sources)]
        width = int(rng.uniform(350, 560))
        left = int(rng.integers(source.width - width + 1))
        top = int(rng.integers(source.height - width * 3 // 4 + 1))
        box = (left, top, left + width, top + width * 3 // 4)
        yield source.resize(size, Image.Resampling.BICUBIC, box=box)


def in_turns(tasks: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each task returns in `rounds` rounds after one to warm up. Tasks take turns, in another order each round, so
    that all meet the same state of the machine."""
    found: dict[str, list[T]] = {name: [] for name in tasks}
    names = list(tasks)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            progress(f"round {turn} of {rounds}: {name}")
            result = tasks[name]()
            if turn:
                found[name].append(result)
    return found


def progress(line: str) -> None:
    """Show a line on a terminal, in place of the one before."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def bare_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    *,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> None:
    """Forward, loss, backward and the optimizer's step, and nothing else."""
    with precision.autocast():
        logits = model(images)
    scaler.scale(criterion(logits.to(images.dtype), targets)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def peak_bytes(device: torch.device, task: Callable[[], object]) -> int:
    """The most bytes that torch's allocator holds at a time during `task`, beyond those held before.

    On the CPU this sums the profiler's record of every allocation. Memory that a library takes from the system itself,
    such as scratch space of a convolution, is not counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        task()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        task()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    found = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate((size for _, size in found), initial=0))


def options(program: str, about: str, *, plot: bool = True) -> argparse.ArgumentParser:
    """A benchmark's options, with --json and, unless it has no plot, --plot."""
    parser = argparse.ArgumentParser(prog=f"python -m cotnet.benchmarks.{program}", description=about)
    parser.add_argument("--json", type=output_file, help="file for the records")
    if plot:
        parser.add_argument("--plot", type=output_file, help="PNG file for the plot")
    return parser


def finish(rows: Sequence[Row], path: Path | None, *, kept: Sequence[Row] = ()) -> None:
    """Print the machine and a table of the rows; None and what a row lacks is a dash, lists are left out. Where a JSON
    file is given, write the machine and the rows behind those that are `kept` to it."""
    progress("")
    here = machine()
    gpus = f", {len(here['gpus'])} x {here['gpus'][0]}" if here["gpus"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    memory = f"{here['memory_gib']:.0f} GiB"
    sys.stdout.write(f"{here['processor']}, {here['cores']} cores, {memory}{gpus}; {versions}\n")
    cells = {key: value for row in rows for key, value in row.items() if isinstance(value, str | int | float)}
    headings = {key.replace("_", " "): value for key, value in cells.items()}
    texts = [heading for heading, value in headings.items() if isinstance(value, str)]
    print_table([*headings], [[shown(row.get(key)) for key in cells] for row in rows], texts=texts)
    if path:
        write_text(path, json.dumps({"machine": here, "records": [*kept, *rows]}, indent=1) + "\n")


def shown(value: Any) -> str:
    """A table's cell; four digits of a float."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def output_file(name: str) -> Path:
    """A file to write, as an option's type: refused before the measurement if it cannot be written."""
    path = Path(name)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{name} is a folder; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be written ({error.strerror}); give another file") from error
    if path.exists() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{name} is write-protected; give another file")
    return path


def draw_bars(png: Path | None, groups: Mapping[str, Mapping[str, float]], *, title: str, unit: str) -> None:
    """A panel of horizontal bars per group, {group: {label: value}}, ours first; where a file is given."""
    if not png:
        return
    size = (3.6 * len(groups), 0.9 + 0.45 * max(map(len, groups.values())))
    with figure(png, size, columns=len(groups), dpi=130) as (page, panels):
        page.suptitle(title, fontsize=10)
        for axes, (group, bars) in zip(panels, groups.items(), strict=True):
            drawn = axes.barh(list(bars), list(bars.values()), color=["tab:blue", *["0.7"] * (len(bars) - 1)])
            axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=8)
            axes.invert_yaxis()
            axes.margins(x=0.18)
            axes.set_title(group, fontsize=9)
            axes.set_xlabel(unit, fontsize=8)
            axes.tick_params(labelsize=8)
