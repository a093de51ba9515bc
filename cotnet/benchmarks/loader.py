"""The DALI loader against others: `python -m cotnet.benchmarks.loader [--json FILE] [--plot FILE] [--root DIR]`.

All do the same from file to float: read, decode, crop or resize, flip, augment, normalise, one batch on the device.
All loaders are open at once and take turns, an epoch each, on as many cores as they have workers or threads.
Images per second depend on what else the machine does; CPU milliseconds per image, over all processes, hardly do.
A ratio is ours to the peer's: of images per second (more is better), for loader/val of CPU time (less is better), for
loader/start of seconds.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image

from cotnet import parts
from cotnet.benchmarks import meters, report
from cotnet.benchmarks.peers import PEERS, LoaderTask, PeerLoader
from cotnet.commands.program import one_line
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision
from cotnet.errors import DataError
from cotnet.parts import read_settings
from data.sets.manifest import write_manifest
from data.sets.read import read_split

TASKS: Final = ("plain", "randaug", "val")
OURS: Final = "DALI loader (ours)"
POLICY: Final = "rand-timm-m9-n2-mstd0.5"


class EpochFigures(NamedTuple):
    """One timed epoch."""

    images_per_second: float
    cpu_ms_per_image: float


class OurLoader:
    """The DALI loader and what follows it on the device, as training and evaluation use them."""

    def __init__(self, train: Path, task: LoaderTask) -> None:
        images = read_split(train.parent, "train")
        size, batch = task.image_size, task.batch_size
        given = [f"data.num_classes={len(images.classes)}", f"data.image_size={size}", f"data.eval_size={size}"]
        given += [f"train.batch_size={batch}", f"data.eval_batch_size={batch}", f"loader.threads={task.workers}"]
        given += ["data.root=memory", "loader=dali", "data.eval_interpolation=bilinear"]
        given += ["augmentation=default", "augmentation.interpolation=bilinear"]
        given += [f"augmentation.policy={POLICY}"] if task.name == "randaug" else []
        config = compose("train", given)
        settings, precision = read_settings(config), Precision(name="fp32", device=task.device)
        ranks = Ranks(rank=0, world_size=1, device=task.device)
        self._transform: Callable[..., torch.Tensor]
        if task.name == "val":
            prepare = parts.evaluation_transform(settings.data, precision)
            self._loader = parts.evaluation_loader(config, settings.data, images, ranks)
            self._transform = lambda images, *_: prepare(images)
        else:
            transform = parts.train_transform(config, settings, precision)
            self._loader, _ = parts.train_loader(config, settings, images, ranks)
            self._transform = lambda *batch: transform(*batch)[0]

    def epoch(self, epoch: int) -> Iterator[torch.Tensor]:
        for images, targets, indices in self._loader.batches(epoch):
            yield self._transform(images, targets, indices, epoch)

    def close(self) -> None:
        self._loader.close()


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


def timed_epoch(loader: PeerLoader | OurLoader, epochs: Iterator[int], device: torch.device) -> EpochFigures:
    """Images per second and CPU time of the next epoch, its start included."""
    cpu, started = cpu_seconds(), time.perf_counter()
    images = sum(map(len, loader.epoch(next(epochs))))
    seconds = meters.now(device) - started
    return EpochFigures(images / seconds, 1000 * (cpu_seconds() - cpu) / images)


def measure_loaders(root: Path, task: LoaderTask, rounds: int) -> list[dict[str, Any]]:
    """One record per peer: all loaders take turns, `rounds` epochs each after one to warm up."""
    makers: dict[str, Callable[[Path, LoaderTask], PeerLoader | OurLoader]] = {**PEERS, OURS: OurLoader}
    with ExitStack() as stack:
        turns: dict[str, Callable[[], EpochFigures]] = {}
        for name, make in makers.items():
            loader = stack.enter_context(closing(make(root / "train", task)))
            turns[name] = partial(timed_epoch, loader, count(), task.device)
        found = meters.in_turns(turns, rounds)
    return [peer_record(f"loader/{task.name}", peer, found[OURS], found[peer]) for peer in PEERS]


def peer_record(name: str, peer: str, ours: list[EpochFigures], theirs: list[EpochFigures]) -> dict[str, Any]:
    """Medians of both, and the median of the rounds' ratios."""
    field = "cpu_ms_per_image" if name == "loader/val" else "images_per_second"
    ratio = median(getattr(a, field) / getattr(b, field) for a, b in zip(ours, theirs, strict=True))
    record: dict[str, Any] = {"name": name, "peer": peer, "ratio": ratio, "ratio_of": field}
    for part in EpochFigures._fields:
        record[part] = median(getattr(figures, part) for figures in ours)
        record[f"peer_{part}"] = median(getattr(figures, part) for figures in theirs)
    return record


def measure_start(folder: Path, entries: int) -> dict[str, Any]:
    """Seconds to a usable set from a manifest of `entries`, and from walking as many files with ImageFolder.

    At most 128,000 empty files are made; the time of a longer walk is in proportion.
    """
    from torchvision.datasets import ImageFolder

    names = tuple(f"n{label:08d}" for label in range(1000))
    per_class, walked = -(-entries // 1000), min(-(-entries // 1000), 128)
    for name in names:
        (folder / "train" / name).mkdir(parents=True)
        for number in range(walked):
            (folder / "train" / name / f"{name}_{number}.JPEG").touch()
    cpu = torch.device("cpu")
    walk = meters.seconds(partial(ImageFolder, folder / "train"), cpu) * per_class / walked
    files = [f"{name}/{name}_{number}.JPEG" for name in names for number in range(per_class)]
    columns = {"files": files, "labels": np.repeat(np.arange(1000), per_class).tolist(), "excluded": {}}
    columns |= {"heights": [375] * len(files), "widths": [500] * len(files), "digests": [f"{0:016x}"] * len(files)}
    write_manifest(folder, names, splits={"train": columns})
    seconds = meters.seconds(partial(read_split, folder, "train"), cpu)
    ours = {"images_per_second": None, "cpu_ms_per_image": None, "seconds": seconds, "peer_seconds": walk}
    return {"name": "loader/start", "peer": "directory walk", **ours, "ratio": seconds / walk, "ratio_of": "seconds"}


def _arguments() -> argparse.ArgumentParser:
    parser, kinds = report.options("loader", "Compare loaders."), (*TASKS, "start")
    parser.add_argument("--root", type=Path, help="an image set with train/; photographs of 500 x 375 where not given")
    parser.add_argument("--images", type=int, default=1024, help="photographs to make (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed epochs of each loader (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the batches (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="workers or threads, and cores (%(default)s)")
    parser.add_argument("--entries", type=int, default=1_281_167, help="of the manifest for loader/start (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, help="what to compare")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; exits with 2 and one line for wrong images."""
    given = _arguments().parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.workers])
    torch.set_num_threads(1)
    sizes = {"batch_size": given.batch, "image_size": given.size, "workers": given.workers}
    rows = []
    with one_line(keep=False), tempfile.TemporaryDirectory() as folder:
        root = given.root or Path(folder) / "photographs"
        chosen = [name for name in TASKS if name in given.only]
        if given.root is None and chosen:
            make_photographs(root, given.images)
        for name in chosen:
            rows += measure_loaders(root, LoaderTask(name=name, device=meters.first_device(), **sizes), given.rounds)
        if "start" in given.only:
            rows.append(measure_start(Path(folder) / "many", given.entries))
    report.finish(rows, given.json)
    bars: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["name"] != "loader/start":
            group = bars.setdefault(row["name"], {OURS: row["cpu_ms_per_image"]})
            group[row["peer"]] = row["peer_cpu_ms_per_image"]
    report.draw_bars(given.plot, bars, title="CPU time per image, all processes", unit="ms")


if __name__ == "__main__":
    main()
