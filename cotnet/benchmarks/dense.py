"""Training a detector against torchvision's reference script: `python -m cotnet.benchmarks.dense [--json FILE]`.

Both train the same ResNet-50 with FPN and RoI pooling from the same weights, on the same images, with as many workers,
in turns: ours as `train.py task=detection` does but for the pooling, theirs as in `dense_reference.py`. Three figures:
`loader` reads batches as the training step takes them (ours resized and as bytes; theirs of the file's size, as
floats), `input` goes on to the normalised, resized and padded batch, `train` to the end of the optimizer's step.
A ratio is ours to theirs of images per second, a cpu ratio theirs to ours of CPU time (all processes), which hardly
depends on what else the machine does: of both more is better. Peak memory is of one training step.
"""

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torchvision.ops import clip_boxes_to_image

from cotnet import dense_parts, parts
from cotnet.benchmarks import common
from cotnet.benchmarks.common import EpochFigures
from cotnet.benchmarks.dense_reference import DETECTORS, Reference, ReferenceImages
from cotnet.commands.program import one_line
from cotnet.commands.run_parts import new_state
from cotnet.commands.train_dense import as_they_are
from cotnet.config.compose import compose
from cotnet.dense.loader import DenseBatch
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import precision_of
from cotnet.engine.step import Output, Reports, TrainContext, TrainData, train_step
from cotnet.engine.training import train_one_epoch
from data.prepare.commands import positive

SIZE: Final = (640, 480)  # width, height of the photographs
CLASSES: Final = 80
OBJECTS: Final = 7.3  # per image, as in COCO
KINDS: Final = {"loader": None, "input": 1.0, "train": 1.0}  # target of the ratio; none where the work differs
LR: Final = 1e-6  # weights hardly move: every turn is the work of a first step


class DenseCase(NamedTuple):
    """What both do. sides: shorter side, and the most that the longer one may have, in pixels."""

    head: str
    batch: int
    workers: int
    sides: tuple[int, int]
    steps: int  # of a turn of training


class OurDetector:
    """Model, loader and optimizer as `train.py task=detection backbone=torchvision` has them, on one rank; in float32
    and with torch's own choice of algorithms, as theirs, but in channels_last, the default on a GPU."""

    def __init__(self, root: Path, case: DenseCase, *, classes: int, folder: Path) -> None:
        given = ["task=detection", f"task.head={case.head}", "backbone=torchvision", "backbone.model_name=resnet50"]
        given += [f"data.root={root}", f"data.num_classes={classes}", f"train.batch_size={case.batch}"]
        given += [f"augmentation.short_sides=[{case.sides[0]}]", f"augmentation.max_side={case.sides[1]}"]
        given += [f"loader.threads={case.workers}", "logger=none", "train.precision=fp32", "train.channels_last=true"]
        given += ["schedule.warmup_epochs=0", f"augmentation.aspect_group={case.batch}"]
        given += [f"optimizer.lr_per_256={LR * 256 / case.batch}"]
        config = compose("train", given) | {"output_dir": str(folder)}
        settings = dense_parts.settings_of(config)
        ranks = Ranks(rank=0, world_size=1, device=common.first_device())
        precision = precision_of(settings.train, ranks.device)
        precision.set_up_process()
        images = dense_parts.read_set(settings, "train")
        self.state = new_state(config, settings, precision, partial(dense_parts.build_model, config, settings))
        self.model: Any = self.state.model
        self.loader, self.batches = dense_parts.train_loader(config, settings, images, ranks)
        data = TrainData(loader=self.loader, steps_per_epoch=self.batches, transform=as_they_are, files=images.files)
        self.context = TrainContext(
            ranks=ranks,
            settings=settings.train,
            seed=settings.seed,
            precision=precision,
            ddp_model=self.model,
            objective=dense_parts.objective(precision),
            schedule=parts.schedule_of(config),
            data=data,
            output=Output(folder=folder, config="", saving=settings.checkpoint, reports=Reports()),
            evaluate=dict,
            evaluate_every=1,
            stop_requested=lambda: False,
        )

    def read(self, batches: int | None = None) -> Iterator[DenseBatch]:
        """Batches of the next epoch, on the device; at most so many, the last ones."""
        self.state.epoch += 1
        yield from self.loader.batches(self.state.epoch, max(0, self.batches - (batches or self.batches)))

    def train(self, steps: int) -> int:
        """The last steps of the next epoch; returns the number of images."""
        self.state.epoch, self.state.batch_in_epoch = self.state.epoch + 1, max(0, self.batches - steps)
        self.model.train()
        first = self.state.step
        train_one_epoch(self.context, self.state)
        return (self.state.step - first) * self.context.settings.batch_size


def add_near_boxes(_heads: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Adds 160 boxes close to the objects to the proposals of each image, as a trained RPN finds them: a quarter of
    the second stage's boxes then have an object, in both detectors. An untrained one leaves that to chance."""
    features, proposals, sizes, targets = given
    more = []
    for target in targets:
        boxes = target["boxes"][torch.arange(160, device=target["boxes"].device) % len(target["boxes"])]
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        more.append(boxes + 0.08 * sides * (2 * torch.rand_like(boxes) - 1))
    near = [clip_boxes_to_image(boxes, size) for boxes, size in zip(more, sizes, strict=True)]
    return features, [torch.cat(both) for both in zip(proposals, near, strict=True)], sizes, targets


def pool_alike(ours: OurDetector, theirs: Reference) -> None:
    """Gives ours the RoI pooling of theirs, so that both train the same model. Ours takes as many samples as a bin has
    pixels, as the papers do, torchvision's two in each direction."""
    for name in ("box_roi_pool", "mask_roi_pool"):
        if pool := getattr(theirs.model.roi_heads, name):
            setattr(ours.model.roi_heads, name, copy.deepcopy(pool))


def their_training(reference: Reference, steps: int) -> int:
    """Steps of a new epoch; returns the number of images."""
    reference.model.train()
    images = 0
    for batch, targets in reference.read(steps):
        reference.step(batch, targets)
        images += len(batch)
    return images


def read_all(side: OurDetector | Reference, *, prepare: bool) -> int:
    """An epoch of batches, put together on the device if `prepare`; returns the number of images."""
    side.model.train()
    images = 0
    for batch in side.read():
        images += len(batch[0])
        if prepare:
            side.model.transform(batch[0], batch[1])
    return images


def measure_head(root: Path, case: DenseCase, rounds: int) -> list[dict[str, Any]]:
    """A record of each kind: all take turns, `rounds` of each after one to warm up."""
    images = ReferenceImages(root, masks=case.head == "mask_rcnn")
    how: dict[str, Any] = {"batch": case.batch, "workers": case.workers, "sides": case.sides, "lr": LR}
    with tempfile.TemporaryDirectory() as folder:
        ours = OurDetector(root, case, classes=len(images.labels), folder=Path(folder))
        with closing(ours.loader):
            theirs = Reference(images, case.head, **how)
            theirs.model.load_state_dict(ours.model.state_dict())
            pool_alike(ours, theirs)
            for model in (ours.model, theirs.model):
                model.roi_heads.register_forward_pre_hook(add_near_boxes)
            tasks: dict[str, Callable[[], int]] = {}
            for kind in ("loader", "input"):
                tasks[f"{kind}/ours"] = partial(read_all, ours, prepare=kind == "input")
                tasks[f"{kind}/theirs"] = partial(read_all, theirs, prepare=kind == "input")
            tasks |= {"train/ours": partial(ours.train, case.steps)}
            tasks |= {"train/theirs": partial(their_training, theirs, case.steps)}
            turns = {name: partial(common.timed, task, common.first_device()) for name, task in tasks.items()}
            found = common.in_turns(turns, rounds)
            peaks = peaks_of_a_step(ours, theirs)
    rows = [dense_record(kind, case.head, found[f"{kind}/ours"], found[f"{kind}/theirs"]) for kind in KINDS]
    rows[-1] |= peaks
    return rows


def peaks_of_a_step(ours: OurDetector, theirs: Reference) -> dict[str, float]:
    """MiB that a training step of each takes beyond weights and momentum, and theirs to ours."""
    images, targets, indices = next(iter(ours.read(1)))
    step = partial(train_step, ours.context, ours.state, images, targets, indices)
    own = common.peak_bytes(theirs.device, step) / 2**20
    peer = common.peak_bytes(theirs.device, partial(theirs.step, *next(iter(theirs.read(1))))) / 2**20
    return {"peak_mib": own, "peer_peak_mib": peer, "memory_ratio": peer / own}


def dense_record(kind: str, head: str, ours: list[EpochFigures], theirs: list[EpochFigures]) -> dict[str, Any]:
    """Medians of both, and the medians of the rounds' ratios."""
    pairs = list(zip(ours, theirs, strict=True))
    record: dict[str, Any] = {"name": f"dense/{kind}", "head": head}
    for part in EpochFigures._fields:
        record[part] = median(getattr(figures, part) for figures in ours)
        record[f"peer_{part}"] = median(getattr(figures, part) for figures in theirs)
    record["ratio"] = median(own.images_per_second / peer.images_per_second for own, peer in pairs)
    record["cpu_ratio"] = median(peer.cpu_ms_per_image / own.cpu_ms_per_image for own, peer in pairs)
    return record | {"target": KINDS[kind]}


def make_annotated(root: Path, images: int) -> None:
    """root in COCO's layout, train split: photographs of 640 x 480 with outlines of 24 corners, as many and as large as
    COCO's objects are (41 % below 32 pixels, 34 % to 96). What they surround is no object: only the work is COCO's."""
    rng = np.random.default_rng(0)
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for number, photograph in enumerate(common.photographs(images, SIZE), start=1):
        photograph.save(root / "train2017" / f"{number:012d}.jpg", quality=92)
        entries.append({"id": number, "file_name": f"{number:012d}.jpg", "width": SIZE[0], "height": SIZE[1]})
        for _ in range(max(1, rng.poisson(OBJECTS))):
            low, high = ((12, 32), (32, 96), (96, 400))[rng.choice(3, p=(0.41, 0.34, 0.25))]
            half = rng.uniform(low, high) / 2 * np.array([1, rng.uniform(0.5, 1)])
            middle = rng.uniform(half, SIZE - half)
            corners = middle + np.stack([np.cos(turn), np.sin(turn)], 1) * half * rng.uniform(0.7, 1, (24, 1))
            x, y = corners.T
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.integers(1, CLASSES + 1)),
                    "bbox": [*corners.min(0).tolist(), *np.ptp(corners, 0).tolist()],
                    "area": float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2),
                    "segmentation": [corners.ravel().round(2).tolist()],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label, "name": str(label)} for label in range(1, CLASSES + 1)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; exits with 2 and one line for wrong images."""
    parser = common.options("dense", "Train a detector, against torchvision's reference script.", plot=False)
    parser.add_argument("--root", type=Path, help="a COCO set, its train split; photographs of 640 x 480 if not given")
    parser.add_argument("--images", type=positive, default=64, help="photographs to make (%(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="timed turns of each (%(default)s)")
    parser.add_argument("--batch", type=positive, default=2, help="images in a batch (%(default)s)")
    parser.add_argument("--steps", type=positive, default=2, help="optimizer steps in a turn (%(default)s)")
    parser.add_argument("--workers", type=positive, default=2, help="worker processes of each (%(default)s)")
    parser.add_argument("--short-side", type=positive, default=800, help="pixels; 5/3 of it at most (%(default)s)")
    parser.add_argument("--heads", nargs="+", choices=DETECTORS, default=[*DETECTORS], help="what to train")
    given = parser.parse_args(arguments)
    rows, sides = [], (given.short_side, given.short_side * 1333 // 800)
    with one_line(keep=False), tempfile.TemporaryDirectory() as folder:
        root = given.root or Path(folder) / "coco"
        if given.root is None:
            make_annotated(root, given.images)
        for head in given.heads:
            case = DenseCase(head, given.batch, given.workers, sides, given.steps)
            rows += measure_head(root, case, given.rounds)
    load = dict(zip(("1", "5", "15"), os.getloadavg(), strict=True))
    common.finish([row | {"load": load["5"]} for row in rows], given.json)


if __name__ == "__main__":
    main()
