"""Speed: the operator against the memory's bandwidth, whole nets, their slowest kernels."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from cotnet.benchmarks import common
from cotnet.benchmarks.nets import BenchedNet, NetCase
from cotnet.gpu_check.stage import Bench, Claim, run_python

BANDWIDTH_SHARE: Final = 0.7  # of a copy's, that the operator's kernels must reach


def operator(bench: Bench) -> Iterator[Claim]:
    """Forward and backward at CoTNet-50's four stages, in both memory formats."""
    small = ["--stages", "64x14", "--batch", "2", "--rounds", "1"]
    file = bench.folder / "operator.json"
    program = ("-m", "cotnet.benchmarks.local_aggregation", "--forms", "eager", "--json", str(file))
    run_python(*program, *([] if bench.gpu else small), seconds=180)
    for row in read_records(file):
        if row["form"] != "eager":
            continue
        for part in ("forward", "backward"):
            share = row.get(f"{part}_bandwidth")
            figure = f"{row[f'{part}_ms']:.3g} ms" + ("" if share is None else f", {share:.2f} of a copy's bandwidth")
            claim = f"operator, {row['name']}, {part}: at least {BANDWIDTH_SHARE} of a copy's bandwidth"
            yield Claim(claim, figure, None if share is None else share >= BANDWIDTH_SHARE)


def nets(bench: Bench) -> Iterator[Claim]:
    """CoTNet-50 and ResNet-50 in training: images/s in both formats, eager and compiled; memory; host and GPU time."""
    batches = ["80", "256"] if bench.gpu else ["2"]
    size = [] if bench.gpu else ["--size", "32", "--models", "cotnet_small", "--peer", "resnet_small"]
    shared = [
        "-m",
        "cotnet.benchmarks.nets",
        "--rounds",
        "3" if bench.gpu else "1",
        "--dtype",
        "bf16" if bench.gpu else "fp32",
        *size,
    ]
    rates: dict[tuple[str, int, str], float] = {}
    ratios: dict[tuple[str, int], float] = {}
    kinds = {"eager": ["--batch", *batches, "--format", "both"]}
    if bench.gpu:
        kinds["compiled"] = ["--batch", "256", "--format", "channels_last", "--compile"]
    for kind, given in kinds.items():
        file = bench.folder / f"nets-{kind}.json"
        run_python(*shared, *given, "--json", str(file), seconds=400)
        for row in read_records(file):
            if "ratio" in row:
                how = kind if kind == "compiled" else row["memory_format"]
                rates[row["name"], row["batch"], how] = row["images_per_second"]
                ratios[how, row["batch"]] = row["ratio"]
    for better, worse in (("channels_last", "contiguous"), ("compiled", "channels_last")):
        for (name, batch, how), rate in rates.items():
            if how == better and (other := rates.get((name, batch, worse))):
                peer = f"{ratios[better, batch]:.2f} of ResNet's"
                figure = f"{rate:,.1f} images/s, {peer}, against {other:,.1f}, {ratios[worse, batch]:.2f} of ResNet's"
                claim = f"{name}, batch {batch}: {better} is not slower than {worse}"
                yield Claim(claim, figure, bench.on_gpu(rate >= 0.98 * other))
    yield host_time(bench)


def host_time(bench: Bench) -> Claim:
    """How long the host takes to start an eager step of 80 images, and the device to compute it; peak memory."""
    name, batch, size = ("cotnet50", 80, 224) if bench.gpu else ("cotnet_small", 2, 32)
    dtype = "bf16" if bench.gpu else "fp32"
    how: dict[str, Any] = {"memory_format": "channels_last", "compiled": False, "fused": False, "checkpointing": []}
    case = NetCase(name=name, device=str(bench.device), batch=batch, size=size, mode="train", dtype=dtype, **how)
    net, hosts, wholes = BenchedNet(case, bench.device), [], []
    for _ in range(8 if bench.gpu else 4):
        started = common.now(bench.device)
        net.step()
        hosts.append(time.perf_counter() - started)  # the step is queued
        wholes.append(common.now(bench.device) - started)
    host, whole = (1000 * median(times[3:]) for times in (hosts, wholes))
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if bench.gpu else []
    with torch.profiler.profile(activities=activities) as profile:
        net.step()
        common.now(bench.device)
    key = "self_device_time_total" if bench.gpu else "self_cpu_time_total"
    slowest = sorted(profile.key_averages(), key=lambda event: -getattr(event, key))[:10]
    table = "; ".join(f"{event.key[:60]} {getattr(event, key) / 1000:.2f} ms" for event in slowest)
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if bench.gpu else ""
    figure = f"host {host:.1f} ms of {whole:.1f} ms{memory}; slowest: {table}"
    claim = f"{name}, eager, batch {batch}: the host starts a step before the device has computed it"
    return Claim(claim, figure, bench.on_gpu(host < 0.95 * whole))


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a benchmark."""
    found: list[dict[str, Any]] = json.loads(file.read_text())["records"]
    return found
