"""What the tests of the augmentation share: settings with everything off, a batch of photographs, a transform."""

import torch
from photographs import photographs
from torchvision.transforms.v2 import functional

from data.augmentation.settings import Augmentation
from data.augmentation.transform import Transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NONE = Augmentation(
    crop_scale=None,
    crop_ratio=(3 / 4, 4 / 3),
    interpolation="bilinear",
    flip=0.0,
    vertical_flip=0.0,
    repeats=1,
    progressive=None,
    color_jitter=0.0,
    hue=0.0,
    policy=None,
    mixup=0.0,
    cutmix=0.0,
    switch=0.5,
    mix_by="batch",
    mix_epochs=None,
    erasing=0.0,
    erasing_fill="const",
)


def batch(size=6, side=32):
    pixels = [functional.pil_to_tensor(image.resize((side, side))) for image in photographs()[:size]]
    return torch.stack(pixels), torch.arange(size), torch.arange(100, 100 + size)


def transform(augmentation, dtype=torch.float32, seed=0):
    return Transform(augmentation, mean=MEAN, std=STD, num_classes=10, seed=seed, dtype=dtype)
