"""Images: the loader beside the model, decoding, memory."""

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from cotnet import image_parts, parts, records
from cotnet.benchmarks import common
from cotnet.benchmarks.bottleneck import PartBench
from cotnet.benchmarks.loader import make_photographs
from cotnet.commands.run_parts import new_state
from cotnet.commands.train_classifier import backbone_of
from cotnet.config.compose import compose
from cotnet.engine.checkpoints import snapshot
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import precision_of
from cotnet.engine.state import pack
from cotnet.errors import DataError
from cotnet.gpu_check.stage import Bench, Claim, run_python
from data.loading.dali import DaliLoader
from data.loading.plan import EvaluationPlan
from data.loading.torchvision import TorchvisionLoader
from data.sets.image_set import ImageSet
from data.sets.read import read_split

WAIT: Final = 0.02  # the largest share of a step that waits for images
KEPT_RATE: Final = 0.95  # of the model alone, that training from files must reach
DRIFT: Final = 16 * 2**20  # bytes, over epochs of the loader
STALL: Final = 0.5  # seconds in which a checkpoint is copied
LEVELS: Final = 2.0  # mean difference to PIL's pixels


def photographs(bench: Bench) -> Path:
    """A folder with train/ and val/, made once."""
    root = bench.folder / "photographs"
    if not root.exists():
        make_photographs(root, 2000 if bench.gpu else 24)
        (root / "val").symlink_to(root / "train", target_is_directory=True)
    return root


def overrides(bench: Bench) -> list[str]:
    """A run over the photographs."""
    small = ["backbone=cotnet_small", "data.image_size=32", "data.eval_size=32", "train.batch_size=8"]
    large = ["backbone=cotnet50", "train.batch_size=80", "train.channels_last=true"]
    shared = [f"data.root={photographs(bench)}", "data.num_classes=2", "augmentation=cotnet", "logger=none"]
    return [*shared, "launch.ranks=1", *(large if bench.gpu else small)]


def loading(bench: Bench) -> Iterator[Claim]:
    """The loader alone with several threads, decoding on either device, the model alone, and train.py from files."""
    given, steps = overrides(bench), 60 if bench.gpu else 3
    parts_alone = PartBench(compose("train", given), 4.0 if bench.gpu else 0.2)
    model = parts_alone.model(parts_alone.settings.train.batch_size)
    threads = (4, 8, 16) if bench.gpu else (1, 2)
    node = parts_alone.config["loader"]
    ways = [
        {"device": place, "threads": count}
        for place in (("gpu", "cpu") if bench.gpu else ("cpu",))
        for count in threads
    ]
    rates = [parts_alone.loader({**node, **way}) for way in ways]
    figure = ", ".join(
        f"{way['device']} with {way['threads']} threads {rate:,.0f}" for way, rate in zip(ways, rates, strict=True)
    )
    rate = max(rates)
    best = [f"loader.{key}={value}" for key, value in ways[rates.index(rate)].items()]
    passed = bench.on_gpu(rate > model)
    yield Claim("loader with RandAugment is faster than the model", f"{figure}; model {model:,.0f} images/s", passed)
    folder = bench.folder / "run"
    more = [f"output_dir={folder}", f"train.max_steps={steps}", f"train.log_every={max(steps // 12, 1)}"]
    run_python("train.py", *given, *best, *more, seconds=180)
    rows = [row for row in records.read(folder / "metrics.jsonl") if "train/data_wait" in row]
    # Medians: the first records hold warming up, and the loader starts anew in each epoch.
    wait, rate = (median(row[f"train/{key}"] for row in rows) for key in ("data_wait", "images_per_second"))
    yield Claim(f"training waits at most {WAIT:.0%} for images", f"{wait:.1%}", bench.on_gpu(wait <= WAIT))
    claim = f"training from files runs at {KEPT_RATE} of the model alone"
    yield Claim(claim, f"{rate:,.0f} of {model:,.0f} images/s", bench.on_gpu(rate >= KEPT_RATE * model))


def decoding(bench: Bench) -> Iterator[Claim]:
    """An image in two batches, kinds of files against PIL, and truncated files."""
    root = bench.folder / "kinds"
    write_kinds(root, photographs(bench))
    images = read_split(root, "train")
    ours = pixels(DaliLoader, images, bench.device, batch=4, threads=2, prefetch=2)
    alone = pixels(DaliLoader, images, bench.device, batch=1, threads=2, prefetch=2)
    differ = int((ours != alone).flatten(1).any(1).sum())
    figure = f"{differ} of {len(ours)} images differ between batches of 4 and of 1"
    yield Claim("an image has the same pixels whatever else is in its batch", figure, not differ)
    theirs = pixels(TorchvisionLoader, images, torch.device("cpu"), batch=4, threads=0, prefetch=2)
    means = (ours.float() - theirs.float()).abs().mean((1, 2, 3)).tolist()
    figure = ", ".join(f"{Path(file).stem} {mean:.2f}" for file, mean in zip(images.files, means, strict=True))
    yield Claim(f"every kind of file is within {LEVELS:g} levels of PIL in the mean", figure, max(means) <= LEVELS)
    whole = (photographs(bench) / "train" / "0" / "0.jpg").read_bytes()
    for share in (30, 60, 95):
        folder = bench.folder / f"truncated-{share}"
        write(folder / "train" / "a" / "cut.jpg", whole[: len(whole) * share // 100])
        write(folder / "train" / "a" / "whole.jpg", whole)
        try:
            pixels(DaliLoader, read_split(folder, "train"), bench.device, batch=2, threads=1, prefetch=1)
            figure, named = "it was decoded silently", False
        except DataError as error:
            figure, named = str(error).rpartition(": ")[2], "cut.jpg" in str(error)
        yield Claim(f"a JPEG cut at {share} % ends the run with its name", figure, named)


def write_kinds(root: Path, photographs: Path) -> None:
    """root/train/kinds/: one photograph as baseline, progressive, grey and CMYK JPEG, as PNG, and as grey PNG of 16
    bits."""
    with Image.open(photographs / "train" / "0" / "0.jpg") as image:
        image.load()
    grey = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256 + 100)
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "baseline.jpg": (image, {"quality": 92}),
        "cmyk.jpg": (image.convert("CMYK"), {"quality": 92}),
        "deep.png": (grey, {}),
        "grey.jpg": (image.convert("L"), {"quality": 92}),
        "plain.png": (image, {}),
        "progressive.jpg": (image, {"quality": 92, "progressive": True}),
    }
    for name, (picture, how) in kinds.items():
        data = BytesIO()
        picture.save(data, format="PNG" if name.endswith("png") else "JPEG", **how)
        write(root / "train" / "kinds" / name, data.getvalue())


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def pixels(loader: Any, images: ImageSet, device: torch.device, *, batch: int, **given: Any) -> torch.Tensor:
    """(n, 3, 64, 64) uint8 on the CPU: every image's evaluation crop."""
    plan = EvaluationPlan(
        samples=len(images.files), batch_size=batch, rank=0, world_size=1, image_size=64, crop_ratio=0.875
    )
    with closing(loader(images, plan, output_device=device, interpolation="bilinear", **given)) as opened:
        found = torch.cat([made.images.cpu() for made in opened.batches(0)])
    return found[: len(images.files)]


def memory(bench: Bench) -> Iterator[Claim]:
    """The loader over epochs, and the copy that a checkpoint takes."""
    config = compose("train", overrides(bench))
    settings = parts.settings_of(config)
    ranks = Ranks(rank=0, world_size=1, device=bench.device)
    train_set, _ = image_parts.read_data(settings.data)
    loader, _ = parts.train_loader(config, settings, train_set, ranks)
    with closing(loader):
        held = [held_after(loader.batches(epoch), bench) for epoch in range(5)]
    drift = max(held[3:]) - min(held[1:3])
    figure = f"{drift / 2**20:+.0f} MiB in epochs 4 and 5 against 2 and 3"
    passed = bench.on_gpu(drift <= DRIFT)
    yield Claim(f"the loader's memory grows by at most {DRIFT >> 20} MiB", figure, passed)
    settings = replace(settings, train=replace(settings.train, precision="auto"))
    state = new_state(
        config, settings, precision_of(settings.train, bench.device), lambda: backbone_of(config, settings)
    )
    common.now(bench.device)
    started = time.perf_counter()
    snapshot(pack(state, ranks, "{}"))
    seconds = time.perf_counter() - started
    claim = f"a checkpoint stops training for at most {STALL:g} s"
    yield Claim(claim, f"{seconds:.2f} s", bench.on_gpu(seconds <= STALL))


def held_after(batches: Sequence[Any] | Iterator[Any], bench: Bench) -> int:
    """Bytes in use after an epoch: of the GPU, or of this process at its peak."""
    for batch in batches:
        del batch
    if not bench.gpu:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    common.now(bench.device)
    free, total = torch.cuda.mem_get_info(bench.device)
    return total - free
