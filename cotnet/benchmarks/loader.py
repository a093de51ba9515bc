"""The DALI loader against others: `python -m cotnet.benchmarks.loader [--json FILE] [--plot FILE] [--root DIR]`.

Everybody does the same from file to float: read, decode, crop or resize, flip, augment, normalise, one batch on the
device. All loaders are open at once and take turns, an epoch each, on as many cores as they have workers or threads.
Images per second depend on what else the machine does; CPU milliseconds per image, over all processes, hardly do.
A ratio is ours to the peer's: of images per second (more is better), for loader/val of CPU time (less is better), for
loader/start of seconds.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image

from cotnet.benchmarks import meters, report
from cotnet.benchmarks.peers import MEAN, PEERS, STD, Peer, Work
from cotnet.commands.program import one_line
from cotnet.errors import DataError
from data.augmentation.settings import Augmentation
from data.augmentation.transform import Transform, normalize
from data.loading.dali import DaliLoader
from data.loading.plan import EvaluationPlan, TrainPlan
from data.sets.image_set import ImageSet
from data.sets.manifest import write_manifest
from data.sets.read import read_split

WORKS: Final = ("plain", "randaug", "val")
OURS: Final = "DALI loader (ours)"


class Figures(NamedTuple):
    """One timed epoch."""

    images_per_second: float
    cpu_ms_per_image: float


class OurLoader:
    """The DALI loader with what follows it on the device, as training and evaluation use them."""

    def __init__(self, image_set: ImageSet, work: Work) -> None:
        samples = len(image_set.files)
        augmentation = _augmentation(work)
        train = TrainPlan(
            samples=samples,
            batch_size=work.batch_size,
            seed=0,
            image_size=work.image_size,
            crop_scale=augmentation.crop_scale,
            crop_ratio=augmentation.crop_ratio,
            flip=augmentation.flip,
            eval_crop_ratio=0.875,
            repeats=1,
            accumulation=1,
            rank=0,
            world_size=1,
        )
        val = EvaluationPlan(
            samples=samples,
            batch_size=work.batch_size,
            image_size=work.image_size,
            crop_ratio=0.875,
            rank=0,
            world_size=1,
        )
        self._loader = DaliLoader(
            image_set,
            val if work.name == "val" else train,
            device=work.device,
            interpolation="bilinear",
            threads=work.workers,
            prefetch=2,
        )
        self._transform = Transform(augmentation, mean=MEAN, std=STD, num_classes=len(image_set.classes), seed=0)
        self._work = work

    def epoch(self, epoch: int) -> Iterator[torch.Tensor]:
        for images, targets, indices in self._loader.batches(epoch):
            if self._work.name == "val":
                yield normalize(images, MEAN, STD, torch.float32)
            else:
                yield self._transform(images, targets, indices, epoch)[0]

    def close(self) -> None:
        self._loader.close()


def _augmentation(work: Work) -> Augmentation:
    return Augmentation(
        crop_scale=(0.08, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        interpolation="bilinear",
        flip=0.5,
        vertical_flip=0.0,
        repeats=1,
        progressive=None,
        color_jitter=0.0,
        hue=0.0,
        policy="rand-timm-m9-n2-mstd0.5" if work.name == "randaug" else None,
        mixup=0.0,
        cutmix=0.0,
        switch=0.5,
        mix_by="batch",
        mix_epochs=None,
        erasing=0.0,
        erasing_fill="const",
    )


def make_photographs(root: Path, images: int) -> None:
    """root/train/<class>/: JPEGs of 500 x 375 of about 100 kB, crops of the two photographs that scikit-learn ships."""
    try:
        from sklearn.datasets import load_sample_images
    except ModuleNotFoundError as error:
        raise DataError("photographs come with scikit-learn, which is missing; pip install scikit-learn") from error
    sources = [Image.fromarray(array) for array in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(images):
        source = sources[number % len(sources)]
        width = int(rng.uniform(350, 560))
        left = int(rng.integers(source.width - width + 1))
        top = int(rng.integers(source.height - width * 3 // 4 + 1))
        box = (left, top, left + width, top + width * 3 // 4)
        folder = root / "train" / str(number % len(sources))
        folder.mkdir(parents=True, exist_ok=True)
        source.resize((500, 375), Image.Resampling.BICUBIC, box=box).save(folder / f"{number}.jpg", quality=92)


def cpu_seconds() -> float:
    """CPU time so far of this process, all its threads and its living children."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread or child that has just ended
            for child in (task / "children").read_text().split():
                ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def timed_epoch(loader: Peer | OurLoader, epoch: int, device: torch.device) -> Figures:
    """Images per second and CPU time of one epoch, its start included."""
    images, cpu, started = 0, cpu_seconds(), time.perf_counter()
    for batch in loader.epoch(epoch):
        images += len(batch)
    seconds = meters.now(device) - started
    return Figures(images / seconds, 1000 * (cpu_seconds() - cpu) / images)


def compare(root: Path, work: Work, rounds: int) -> list[dict[str, Any]]:
    """One record per peer: all loaders take turns, `rounds` epochs each after one to warm up."""
    image_set = read_split(root, "train")
    with ExitStack() as stack:
        loaders: dict[str, Peer | OurLoader] = {
            name: stack.enter_context(closing(make(root / "train", work)))
            for name, make in PEERS.items()
            if make is not None
        }
        loaders[OURS] = stack.enter_context(closing(OurLoader(image_set, work)))
        found: dict[str, list[Figures]] = {name: [] for name in loaders}
        for turn in range(rounds + 1):
            for name, loader in loaders.items():
                figures = timed_epoch(loader, turn, work.device)
                if turn:
                    found[name].append(figures)
    return [_record(f"loader/{work.name}", peer, found[OURS], found[peer]) for peer in PEERS if peer in found]


def _record(name: str, peer: str, ours: list[Figures], theirs: list[Figures]) -> dict[str, Any]:
    by_cpu = name == "loader/val"
    field = "cpu_ms_per_image" if by_cpu else "images_per_second"
    ratio = median(getattr(a, field) / getattr(b, field) for a, b in zip(ours, theirs, strict=True))
    record: dict[str, Any] = {"name": name, "peer": peer, "ratio": ratio, "ratio_of": field}
    for part in Figures._fields:
        record[part] = median(getattr(figures, part) for figures in ours)
        record[f"peer_{part}"] = median(getattr(figures, part) for figures in theirs)
    return record


def compare_start(folder: Path, entries: int) -> dict[str, Any]:
    """Seconds to a usable set from a manifest of `entries`, and from walking as many files with ImageFolder.

    At most 128,000 empty files are made; the walk over more is their time in proportion.
    """
    from torchvision.datasets import ImageFolder

    names = tuple(f"n{label:08d}" for label in range(1000))
    per_class, walked = -(-entries // 1000), min(-(-entries // 1000), 128)
    for name in names:
        (folder / "train" / name).mkdir(parents=True)
        for number in range(walked):
            (folder / "train" / name / f"{name}_{number}.JPEG").touch()
    started = time.perf_counter()
    ImageFolder(folder / "train")
    walk = (time.perf_counter() - started) * per_class / walked
    files = [f"{name}/{name}_{number}.JPEG" for name in names for number in range(per_class)]
    columns = {"files": files, "labels": np.repeat(np.arange(1000), per_class).tolist(), "excluded": {}}
    columns |= {
        "heights": [375] * len(files),
        "widths": [500] * len(files),
        "digests": ["0123456789abcdef"] * len(files),
    }
    write_manifest(folder, names, splits={"train": columns})
    started = time.perf_counter()
    read_split(folder, "train")
    seconds = time.perf_counter() - started
    ours = {"images_per_second": None, "cpu_ms_per_image": None, "seconds": seconds, "peer_seconds": walk}
    return {"name": "loader/start", "peer": "directory walk", **ours, "ratio": seconds / walk, "ratio_of": "seconds"}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cotnet.benchmarks.loader", description="Compare loaders.")
    parser.add_argument("--json", type=report.output_file, help="file for the records")
    parser.add_argument("--plot", type=report.output_file, help="PNG file for the plot")
    parser.add_argument("--root", type=Path, help="an image set with train/; photographs of 500 x 375 where not given")
    parser.add_argument("--images", type=int, default=1024, help="photographs to make (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed epochs of each loader (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of what comes out (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="workers or threads, and cores (%(default)s)")
    parser.add_argument("--entries", type=int, default=1_281_167, help="of the manifest for loader/start (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=(*WORKS, "start"), default=(*WORKS, "start"), help="what to compare"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; exits with 2 and one line for wrong images."""
    given = _arguments().parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))[: given.workers]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    rows = []
    with one_line(keep=False), tempfile.TemporaryDirectory() as folder:
        root = given.root or Path(folder) / "photographs"
        if given.root is None and set(given.only) & set(WORKS):
            make_photographs(root, given.images)
        for name in WORKS:
            if name in given.only:
                work = Work(
                    name=name, batch_size=given.batch, image_size=given.size, workers=given.workers, device=device
                )
                rows += compare(root, work, given.rounds)
        if "start" in given.only:
            rows.append(compare_start(Path(folder) / "many", given.entries))
    report.print_table(rows)
    if given.json:
        report.write_json(given.json, rows)
        sys.stdout.write(f"{given.json}\n")
    if given.plot:
        report.draw_bars(given.plot, _bars(rows), title="CPU time per image, all processes", unit="ms")
        sys.stdout.write(f"{given.plot}\n")


def _bars(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["name"] != "loader/start":
            bars = groups.setdefault(row["name"], {OURS: row["cpu_ms_per_image"]})
            bars[row["peer"]] = row["peer_cpu_ms_per_image"]
    return groups


if __name__ == "__main__":
    main()
