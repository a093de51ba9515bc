"""Loaders of drawn sets, for the tests of what they give."""

from dataclasses import replace

import torch

from cotnet.dense.loader import DenseLoader
from cotnet.dense.plans import DenseEvaluationPlan, DensePlan
from cotnet.dense.settings import DenseAugmentation

MEAN = (0.485, 0.456, 0.406)
GREY = (124, 116, 104)
JITTERED = DenseAugmentation(
    short_sides=(64, 96),
    between=True,
    max_side=160,
    jitter=(0.8, 1.25),
    crop=None,
    crop_max_share=1,
    flip=0.5,
    photometric=True,
    aspect_group=2,
)
WHOLE = replace(JITTERED, short_sides=(40,), between=False, jitter=(1, 1), flip=0, photometric=False, aspect_group=1)


def loader(image_set, augmentation=JITTERED, *, threads=0, **changes):
    return made(image_set, training_plan(image_set, augmentation, **changes), threads=threads)


def training_plan(image_set, augmentation, *, batch_size=4, rank=0, world_size=1):
    sizes = getattr(image_set, "sizes", None)
    shared = {"samples": len(image_set.files), "rank": rank, "world_size": world_size}
    return DensePlan(augmentation=augmentation, sizes=sizes, batch_size=batch_size, seed=3, **shared)


def made(image_set, plan, *, threads=0):
    return DenseLoader(image_set, plan, output_device=torch.device("cpu"), mean=MEAN, threads=threads, prefetch=2)


def evaluation_plan(image_set, *, short_side=40, multiple=1):
    shared = {"samples": len(image_set.files), "batch_size": 2, "rank": 0, "world_size": 1}
    return DenseEvaluationPlan(short_side=short_side, max_side=10 * short_side, multiple=multiple, **shared)
