"""The DALI loader against others: `python -m cotnet.benchmarks.loader [--json FILE] [--plot FILE] [--root DIR]`.

All do the same from file to float: read, decode, crop or resize, flip, augment, normalise, one batch on the device.
All loaders are open at once and take turns, an epoch each, on as many cores as they have workers or threads. The others
are built as in their own documentation.
Images per second depend on what else the machine does; CPU milliseconds per image, over all processes, hardly do.
A ratio is ours to the peer's: of images per second (more is better), for loader/val of CPU time (less is better), for
loader/start of seconds.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2

from cotnet import parts
from cotnet.benchmarks import common
from cotnet.benchmarks.common import EpochFigures
from cotnet.commands.program import one_line
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision
from data.sets.manifest import write_manifest
from data.sets.read import read_split

TASKS: Final = ("plain", "randaug", "val")
OURS: Final = "DALI loader (ours)"
POLICY: Final = "rand-timm-m9-n2-mstd0.5"
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
Epoch = Callable[[int], Iterator[Tensor]]  # the batches of an epoch


@dataclass(frozen=True, kw_only=True)
class LoaderTask:
    """What every loader does; all bilinear, antialiased, normalised. `name`: plain (random crop, flip), randaug (plain
    and timm's RandAugment m9 n2 mstd0.5), val (resize, central crop)."""

    name: str
    batch_size: int
    image_size: int
    workers: int
    device: torch.device


@contextmanager
def our_loader(train: Path, task: LoaderTask) -> Iterator[Epoch]:
    """The DALI loader and what follows it on the device, as training and evaluation use them."""
    images = read_split(train.parent, "train")
    size, batch = task.image_size, task.batch_size
    given = [f"data.num_classes={len(images.classes)}", f"data.image_size={size}", f"data.eval_size={size}"]
    given += [f"train.batch_size={batch}", f"data.eval_batch_size={batch}", f"loader.threads={task.workers}"]
    given += ["data.root=memory", "loader=dali", "data.eval_interpolation=bilinear"]
    given += ["augmentation=default", "augmentation.interpolation=bilinear"]
    given += [f"augmentation.policy={POLICY}"] if task.name == "randaug" else []
    config = compose("train", given)
    settings, precision = parts.read_settings(config), Precision(name="fp32", device=task.device)
    ranks = Ranks(rank=0, world_size=1, device=task.device)
    prepare = parts.evaluation_transform(settings.data, precision)
    transform = parts.train_transform(config, settings, precision)
    if task.name == "val":
        loader = parts.evaluation_loader(config, settings.data, images, ranks)
    else:
        loader, _ = parts.train_loader(config, settings, images, ranks)

    def epoch(number: int) -> Iterator[Tensor]:
        for images, targets, indices in loader.batches(number):
            yield prepare(images) if task.name == "val" else transform(images, targets, indices, number)[0]

    with closing(loader):
        yield epoch


@contextmanager
def peer_loader(make: Callable[[Path, LoaderTask], Any], train: Path, task: LoaderTask) -> Iterator[Epoch]:
    """A data loader that gives (images, targets)."""
    loader = make(train, task)
    yield lambda _epoch: (images.to(task.device, non_blocking=True) for images, _ in loader)


def torchvision_loader(train: Path, task: LoaderTask, *, tensors: bool) -> DataLoader[Any]:
    """ImageFolder with v2 transforms; images from decode_image, or PIL's."""
    if task.name == "val":
        steps = [v2.Resize(int(task.image_size / 0.875), antialias=True), v2.CenterCrop(task.image_size)]
    else:
        steps = [v2.RandomResizedCrop(task.image_size, antialias=True), v2.RandomHorizontalFlip()]
    steps += [v2.RandAugment(2, 9)] if task.name == "randaug" else []
    steps += [] if tensors else [v2.PILToTensor()]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    decoder = {"loader": lambda path: decode_image(path, "RGB")} if tensors else {}
    return DataLoader(
        ImageFolder(train, transform, **decoder),
        task.batch_size,
        shuffle=task.name != "val",
        num_workers=task.workers,
        persistent_workers=True,
        drop_last=task.name != "val",
        pin_memory=task.device.type == "cuda",
    )


def timm_loader(train: Path, task: LoaderTask) -> Any:
    """timm's create_dataset and create_loader, whose prefetcher normalises whole batches."""
    from timm.data import create_dataset, create_loader

    training = task.name != "val"
    options = {"auto_augment": "rand-m9-n2-mstd0.5"} if task.name == "randaug" else {"color_jitter": 0.0}
    return create_loader(
        create_dataset("", root=str(train)),
        (3, task.image_size, task.image_size),
        task.batch_size,
        is_training=training,
        interpolation="bilinear",
        train_crop_mode="rrc" if training else None,
        crop_pct=0.875,
        num_workers=task.workers,
        persistent_workers=True,
        pin_memory=task.device.type == "cuda",
        device=task.device,
        **options,
    )


PEERS: Final[dict[str, Callable[[Path, LoaderTask], Any]]] = {
    "torchvision PIL": partial(torchvision_loader, tensors=False),
    "torchvision tensor decode": partial(torchvision_loader, tensors=True),
    **({"timm": timm_loader} if find_spec("timm") else {}),
}
LOADERS: Final[dict[str, Callable[[Path, LoaderTask], AbstractContextManager[Epoch]]]] = {
    **{name: partial(peer_loader, make) for name, make in PEERS.items()},
    OURS: our_loader,
}


def make_photographs(root: Path, images: int) -> None:
    """root/train/<class>/: JPEGs of 500 x 375 of about 100 kB, of two classes."""
    for number, photograph in enumerate(common.photographs(images, (500, 375))):
        folder = root / "train" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        photograph.save(folder / f"{number}.jpg", quality=92)


def timed_epoch(epoch: Epoch, numbers: Iterator[int], device: torch.device) -> EpochFigures:
    """Images per second and CPU time of the next epoch, its start included."""
    return common.timed(lambda: sum(map(len, epoch(next(numbers)))), device)


def measure_loaders(root: Path, task: LoaderTask, rounds: int) -> list[dict[str, Any]]:
    """One record per peer: all loaders take turns, `rounds` epochs each after one to warm up."""
    with ExitStack() as stack:
        epochs = {name: stack.enter_context(make(root / "train", task)) for name, make in LOADERS.items()}
        turns = {name: partial(timed_epoch, epoch, count(), task.device) for name, epoch in epochs.items()}
        found = common.in_turns(turns, rounds)
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
    """Seconds to a usable set from a manifest of `entries`, and from walking as many files with ImageFolder. At most
    128,000 empty files are made; the time of a longer walk is in proportion."""
    names = tuple(f"n{label:08d}" for label in range(1000))
    per_class, walked = -(-entries // 1000), min(-(-entries // 1000), 128)
    for name in names:
        (folder / "train" / name).mkdir(parents=True)
        for number in range(walked):
            (folder / "train" / name / f"{name}_{number}.JPEG").touch()
    cpu = torch.device("cpu")
    walk = common.seconds(partial(ImageFolder, folder / "train"), cpu) * per_class / walked
    files = [f"{name}/{name}_{number}.JPEG" for name in names for number in range(per_class)]
    columns = {"files": files, "labels": np.repeat(np.arange(1000), per_class).tolist(), "excluded": {}}
    columns |= {"heights": [375] * len(files), "widths": [500] * len(files), "digests": [f"{0:016x}"] * len(files)}
    write_manifest(folder, names, splits={"train": columns})
    seconds = common.seconds(partial(read_split, folder, "train"), cpu)
    ours = {"images_per_second": None, "cpu_ms_per_image": None, "seconds": seconds, "peer_seconds": walk}
    return {"name": "loader/start", "peer": "directory walk", **ours, "ratio": seconds / walk, "ratio_of": "seconds"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; exits with 2 and one line for wrong images."""
    parser, kinds = common.options("loader", "Compare loaders."), (*TASKS, "start")
    parser.add_argument("--root", type=Path, help="an image set with train/; photographs of 500 x 375 where not given")
    parser.add_argument("--images", type=int, default=1024, help="photographs to make (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed epochs of each loader (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the batches (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="workers or threads, and cores (%(default)s)")
    parser.add_argument("--entries", type=int, default=1_281_167, help="of the manifest for loader/start (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, help="what to compare")
    given = parser.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.workers])
    torch.set_num_threads(1)
    sizes = {"batch_size": given.batch, "image_size": given.size, "workers": given.workers}
    rows = []
    bars: dict[str, dict[str, float]] = {}
    with one_line(keep=False), tempfile.TemporaryDirectory() as folder:
        chosen, root = [name for name in TASKS if name in given.only], given.root or Path(folder) / "photographs"
        if given.root is None and chosen:
            make_photographs(root, given.images)
        for name in chosen:
            found = measure_loaders(root, LoaderTask(name=name, device=common.first_device(), **sizes), given.rounds)
            bars[f"loader/{name}"] = {OURS: found[0]["cpu_ms_per_image"]}
            bars[f"loader/{name}"] |= {row["peer"]: row["peer_cpu_ms_per_image"] for row in found}
            rows += found
        if "start" in given.only:
            rows.append(measure_start(Path(folder) / "many", given.entries))
    common.finish(rows, given.json)
    common.draw_bars(given.plot, bars, title="CPU time per image, all processes", unit="ms")


if __name__ == "__main__":
    main()
