"""The images that an exported file is checked, calibrated and counted on."""

import dataclasses
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from cotnet import parts
from cotnet.commands.eval_model import EvaluatedModel, data_settings
from cotnet.commands.eval_sets import read_sets, unlabelled
from cotnet.config.compose import Config
from cotnet.engine.distributed import Ranks
from cotnet.engine.precision import Precision
from cotnet.errors import InputError
from cotnet.evaluation.suites import sample
from data.loading.decoding import decoded_rgb
from data.loading.plan import all_sizes
from data.sets.image_set import DECODING_ERRORS, ImageSet, damaged

CPU = torch.device("cpu")


def check_images(read: EvaluatedModel, given: Path | None, *, count: int) -> ImageSet:
    """The images to compare on: `count` of the folder `given`, or of the val split.

    Raises:
        InputError: there are none.
    """
    classes = read.config["backbone"]["num_classes"]
    if given is not None:
        return sample(unlabelled(given, classes), count)
    try:
        return sample(read_sets({**read.config, "images": None}, read.classes)[0].images, count)
    except InputError as error:
        raise InputError(f"{error}; an export is checked on images: set images=FOLDER or data.root=DIR") from None


def prepared(config: Config, images: ImageSet, *, more_sizes: tuple[int, ...] = ()) -> list[tuple[Tensor, ...]]:
    """The batches of images as the evaluation's loader makes them, uint8 (n, 3, S, S), at each size; config:
    completed."""
    data = data_settings(config)
    data = dataclasses.replace(data, eval_batch_size=min(data.eval_batch_size, 32))
    loader = parts.evaluation_loader(
        config, data, images, Ranks(rank=0, world_size=1, device=CPU), more_sizes=more_sizes
    )
    try:
        return [tuple(part[batch.indices >= 0] for part in all_sizes(batch)) for batch in loader.batches(0)]
    finally:
        loader.close()


def normalised(config: Config, pixels: Tensor) -> Tensor:
    """uint8 pixels as the model takes them, float32."""
    return parts.evaluation_transform(data_settings(config), Precision(name="fp32", device=CPU))(pixels)


def whole(images: ImageSet) -> list[Tensor]:
    """Each image in its own size, uint8 (1, 3, H, W).

    Raises:
        DataError: an image does not decode.
    """
    found = []
    for row in range(len(images.files)):
        path = images.path(row)
        try:
            with Image.open(path) as image:
                found.append(pil_to_tensor(decoded_rgb(image, path)).unsqueeze(0))
        except DECODING_ERRORS as error:
            raise damaged(path, error) from None
    return found
