"""What the benchmarks of whole nets share: which nets, how they are run, and one step of them."""

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from cotnet import models
from cotnet.benchmarks import report
from cotnet.engine.compilation import compiled, require_compiler
from cotnet.engine.precision import DTYPES, Precision
from cotnet.errors import InputError
from cotnet.models import table
from cotnet.models.checkpointing import checkpoint_stages
from cotnet.models.fusing import fuse

EXTERNAL: Final = {"torchvision": models.torchvision_model, "timm": models.timm_model}
FORMATS: Final = ("contiguous", "channels_last")
PEER: Final = "torchvision:resnet50"


@dataclass(frozen=True, kw_only=True)
class Work:
    """One net and how it runs: `name` as in `cotnet.models`, or `torchvision:NAME`, `timm:NAME`."""

    name: str
    batch: int
    size: int
    mode: str
    dtype: str
    memory_format: str
    compile: bool
    fuse: bool
    checkpointing: tuple[int, ...] = ()
    recompute: bool = False

    def record(self, device: torch.device) -> dict[str, Any]:
        """What every record says of it."""
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        flags = {"compiled": self.compile, "fused": self.fuse}
        again = {"checkpointing": list(self.checkpointing), "recompute": self.recompute}
        shape = {"batch": self.batch, "size": self.size, "mode": self.mode, "dtype": self.dtype}
        return {"name": self.name, "device": where, **shape, "memory_format": self.memory_format, **flags, **again}


def build(name: str, size: int) -> nn.Module:
    """The net with fresh weights, its position tables for this size; InputError for an unknown name."""
    source, _, other = name.rpartition(":")
    if source in EXTERNAL:
        return EXTERNAL[source](model_name=other)
    if source or name not in models.__all__ or name.endswith("_model"):
        raise InputError(f"{name} is no model; give one of cotnet.models, torchvision:NAME or timm:NAME")
    settings = {"image_size": size} if name.startswith(("botnet", "pvt")) else {}
    model: nn.Module = getattr(models, name)(**settings)
    return model


class Net:
    """A net in memory, ready for its next turn."""

    def __init__(self, work: Work, device: torch.device) -> None:
        self.work, self.training = work, work.mode == "train"
        torch.manual_seed(0)
        self.precision = Precision(name=work.dtype, device=device, channels_last=work.memory_format == "channels_last")
        self.precision.set_up_process()
        model = build(work.name, work.size)
        if work.checkpointing:
            checkpoint_stages(model, work.checkpointing)
        self.model = self.precision.to_device(fuse(model) if work.fuse else model).train(self.training)
        self.run = compiled(self.model) if work.compile else self.model
        images = torch.randn(work.batch, 3, work.size, work.size, device=device, dtype=self.precision.parameters)
        self.images = images.to(memory_format=self.precision.layout)
        self.targets = torch.randint(1000, (work.batch,), device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def around(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self.training else torch.inference_mode()

    def step(self) -> None:
        """Forward; in training also loss, backward and the optimizer's step."""
        with self.around(), self.precision.autocast():
            logits = self.run(self.images)
        if self.training:
            F.cross_entropy(logits.float(), self.targets).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def parser(program: str, about: str) -> argparse.ArgumentParser:
    """The options of a benchmark of nets."""
    options = argparse.ArgumentParser(prog=f"python -m cotnet.benchmarks.{program}", description=about)
    names = "NAME of ours, torchvision:NAME, timm:NAME; with a size of its own NAME@PIXELS"
    options.add_argument("--models", nargs="+", default=["cotnet50"], help=names)
    options.add_argument("--peer", default=PEER, help="what the others are compared with (%(default)s)")
    options.add_argument("--zoo", action="store_true", help="every model with a published top-1, at its size")
    options.add_argument("--batch", nargs="+", type=int, default=[16])
    options.add_argument("--size", nargs="+", type=int, default=[224])
    options.add_argument("--mode", choices=("train", "inference"), default="train")
    options.add_argument("--dtype", choices=sorted(set(DTYPES)), default="fp32")
    options.add_argument("--format", choices=(*FORMATS, "both"), default="contiguous", help="memory format")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--fuse", action="store_true", help="inference: fold BatchNorm (ours only)")
    stages = "training: stages whose activations are computed again (ours only)"
    options.add_argument("--checkpointing", nargs="+", type=int, default=[], choices=(1, 2, 3, 4), help=stages)
    options.add_argument("--recompute", action="store_true", help="training: norms and activations again (ours only)")
    options.add_argument(
        "--json", type=report.output_file, help="file for the records; what it holds of other settings is kept"
    )
    options.add_argument("--plot", type=report.output_file, help="PNG of all records in the file")
    return options


def groups(given: argparse.Namespace) -> Iterator[list[Work]]:
    """The works that take turns: the models and their peer, of one size, batch and memory format."""
    if given.fuse and given.mode == "train":
        raise InputError("--fuse is for --mode inference")
    if given.checkpointing and given.mode != "train":
        raise InputError("--checkpointing is for --mode train")
    if given.recompute and (given.mode != "train" or given.compile):
        raise InputError("--recompute is for --mode train without --compile")
    if given.compile:
        require_compiler(device(), "--compile")
    formats = FORMATS if given.format == "both" else (given.format,)
    if given.zoo:
        cases = [([f"{name}@{size}"], 224) for (name, size), known in table.TABLE.items() if known and known.top1]
    else:
        cases = [(given.models, size) for size in given.size]
    for (names, size), batch in itertools.product(cases, given.batch):
        if min(size, batch) < 1:
            raise InputError(f"--size {size} and --batch {batch} must be at least 1")
        yield [
            Work(
                name=name,
                batch=batch,
                size=own,
                mode=given.mode,
                dtype=given.dtype,
                memory_format=layout,
                compile=given.compile,
                fuse=given.fuse and ":" not in name,
                checkpointing=() if ":" in name else tuple(given.checkpointing),
                recompute=given.recompute and ":" not in name,
            )
            for layout in formats
            for name, own in dict.fromkeys(_sized(name, size) for name in [*names, given.peer])
        ]


def _sized(name: str, size: int) -> tuple[str, int]:
    """NAME@PIXELS has a size of its own."""
    name, _, own = name.partition("@")
    if own and not own.isdigit():
        raise InputError(f"{name}@{own}: {own} is no number of pixels")
    return name, int(own or size)


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def compared(
    records: Sequence[dict[str, Any]], peer: str, ratio: Callable[[dict[str, Any], dict[str, Any]], float]
) -> list[dict[str, Any]]:
    """The records, each but the peer's with `peer` and `ratio` to the peer's in the same memory format."""
    peer = peer.partition("@")[0]
    theirs = {record["memory_format"]: record for record in records if record["name"] == peer}
    return [
        record if record["name"] == peer else {**record, "peer": peer, "ratio": ratio(record, theirs[layout])}
        for record in records
        if (layout := record["memory_format"])
    ]
