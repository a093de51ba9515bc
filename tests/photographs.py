"""Small image sets of real photographs for tests: crops of those that scikit-image and scikit-learn ship."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041", "n01514668")


@cache
def photographs() -> tuple[Image.Image, ...]:
    """The photographs as RGB images, 300 to 640 pixels wide."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    arrays = [*load_sample_images().images]
    arrays += [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    return tuple(Image.fromarray(np.ascontiguousarray(array)).convert("RGB") for array in arrays)


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A random crop of a random photograph at this size."""
    image = photographs()[rng.integers(len(photographs()))]
    share = rng.uniform(0.5, 1)
    crop_width = int(min(image.width, image.height * width / height) * share)
    crop_height = int(crop_width * height / width)
    left = int(rng.integers(image.width - crop_width + 1))
    top = int(rng.integers(image.height - crop_height + 1))
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def make_imagenet(root: Path, *, classes: int = 4, train: int = 8, val: int = 4, seed: int = 0, side: int = 96) -> Path:
    """A folder in ImageNet's layout: train/<synset>/<synset>_<n>.JPEG and val/<synset>/ILSVRC2012_val_<n>.JPEG.

    train, val: images per class; side: about the shorter side in pixels. Returns root.
    """
    rng = np.random.default_rng(seed)
    number = 0
    for synset in SYNSETS[:classes]:
        for split, count in (("train", train), ("val", val)):
            folder = root / split / synset
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                number += 1
                name = f"{synset}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08d}.JPEG"
                width, height = (int(side * rng.uniform(1, 1.6)), int(side * rng.uniform(1, 1.2)))
                if rng.uniform() < 0.3:
                    width, height = height, width
                photograph(rng, width, height).save(folder / name, quality=90)
    return root
