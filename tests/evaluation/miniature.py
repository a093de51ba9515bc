"""A classifier of ImageNet's 1,000 classes with weights of chance, and small test sets whose answers it is known to
give: an image lies in the folder of the class that the model gives it, or of another one."""

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from photographs import photograph
from PIL import Image, ImageOps
from torchvision import transforms

from cotnet import models
from cotnet.models.weights import classifier_keys

SIDE = 32
CROP = 0.875
NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SETTINGS = (
    *("backbone=cotnet_small", "data=imagenet", f"data.image_size={SIDE}", f"data.eval_size={SIDE}", "precision=fp32"),
    *("data.eval_batch_size=16", "loader=torchvision", "loader.threads=0"),
)


@cache
def classifier() -> torch.nn.Module:
    """Features are centred over photographs: the best class then depends on the image."""
    torch.manual_seed(0)
    model = models.cotnet_small(num_classes=1000).eval()
    weight, bias = (model.get_parameter(key) for key in classifier_keys(model))
    features = []
    handle = model.get_submodule(classifier_keys(model)[0].rpartition(".")[0]).register_forward_hook(
        lambda _module, given, _output: features.append(given[0])
    )
    with torch.no_grad():
        model(torch.stack([pixels(image) for image in pool(64)]))
        handle.remove()
        bias.copy_(-weight @ features[0].mean(0))
        weight.mul_(20)
        bias.mul_(20)
    return model


@cache
def pool(count: int) -> tuple[Image.Image, ...]:
    """Photographs of about 50 pixels."""
    rng = np.random.default_rng(5)
    return tuple(photograph(rng, int(rng.integers(44, 60)), int(rng.integers(44, 60))) for _ in range(count))


def pixels(image: Image.Image, *, resize: int = int(SIDE / CROP), border: int = 0) -> torch.Tensor:
    """An image as torchvision's reference evaluates it, with PIL."""
    image = ImageOps.crop(image.convert("RGB"), border)
    steps = [
        transforms.Resize(resize, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(SIDE),
        transforms.ToTensor(),
        NORMALIZE,
    ]
    return transforms.Compose(steps)(image)


@torch.no_grad()
def logits(path: Path, **given: int) -> torch.Tensor:
    """(1000,) of a file, one image at a time."""
    with Image.open(path) as image:
        return classifier()(pixels(image, **given)[None])[0]


def save_weights(path: Path) -> None:
    torch.save(classifier().state_dict(), path)


def fill(
    folder: Path,
    name_of: Callable[[int], str],
    *,
    images: int = 12,
    first: int = 0,
    columns: list[int] | None = None,
    names: str = "{}.png",
    right: Callable[[int], bool] = lambda number: number % 3 != 0,
    **given: int,
) -> int:
    """Images below folder/<name_of(class)>/, of the class that the model gives them where `right`, else of its second
    best; the number of right ones. columns: the classes that are asked. Lossless files: the model sees these pixels."""
    count = 0
    for number in range(images):
        image = pool(64)[(first + number) % 64]
        with torch.no_grad():
            scores = classifier()(pixels(image, **given)[None])[0]
        asked = torch.arange(1000) if columns is None else torch.tensor(columns)
        best = asked[scores[asked].topk(2).indices].tolist()
        count += right(number)
        path = folder / name_of(best[0] if right(number) else best[1]) / names.format(number + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return count


def figures(folder):
    return json.loads((folder / "metrics.json").read_text())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
