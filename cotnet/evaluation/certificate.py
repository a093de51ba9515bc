"""The ways from a file to the model's pixels, so that an evaluation can say what its loader costs in accuracy.

torchvision and DALI are imported where they are used: they take seconds, and few evaluations want a certificate.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from cotnet.evaluation.predictions import Predictions
from cotnet.evaluation.statistics import paired_difference, percent
from data.loading.plan import Batch, EvaluationPlan
from data.sets.image_set import ImageSet, damaged, image_size, in_8_bits

Maker = Callable[[ImageSet], Any]
REFERENCE = "pil"


class TensorLoader:
    """A BatchLoader of an evaluation: torchvision decodes to tensors and resizes these, antialiased."""

    def __init__(self, images: ImageSet, plan: EvaluationPlan, *, device: torch.device, interpolation: str) -> None:
        self._set, self._plan, self._device = images, plan, device
        self._interpolation = interpolation

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """As BatchLoader."""
        for number in range(first, self._plan.batches(epoch)):
            indices = self._plan.indices(epoch, number)
            pixels = torch.stack([self._image(epoch, indices[row : row + 1]) for row in range(len(indices))])
            targets = np.where(indices < 0, 0, self._set.labels[indices % len(self._set.files)])
            yield Batch(pixels.to(self._device), torch.from_numpy(targets).to(self._device), torch.from_numpy(indices))

    def _image(self, epoch: int, index: np.ndarray) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        path = self._set.path(int(index[0]))
        geometry = self._plan.geometry(epoch, index, np.array([image_size(path)]))
        try:
            image = decode_image(str(path), mode=ImageReadMode.RGB)
        except RuntimeError as error:
            raise damaged(path, error) from None
        if image.dtype == torch.uint16:
            image = torch.from_numpy(in_8_bits(image.numpy()))
        box, size, offset = (part[0].tolist() for part in geometry[:3])
        kind = InterpolationMode(self._interpolation)
        image = functional.resized_crop(image, *box, size=size, interpolation=kind, antialias=True)
        side = self._plan.image_size
        return functional.crop(image, *offset, side, side)

    def close(self) -> None:
        """As BatchLoader."""


def paths_to_pixels(
    plan: Callable[[ImageSet], EvaluationPlan], device: torch.device, interpolation: str
) -> dict[str, Maker]:
    """A loader of a set by each way: PIL, torchvision's tensors, DALI on the CPU, and on the GPU where there is one."""
    from data.loading.dali import DaliLoader
    from data.loading.torchvision import TorchvisionLoader

    given: dict[str, Any] = {"output_device": device, "interpolation": interpolation, "threads": 2, "prefetch": 2}
    makers: dict[str, Maker] = {
        REFERENCE: lambda images: TorchvisionLoader(images, plan(images), **given),
        "tensors": lambda images: TensorLoader(images, plan(images), device=device, interpolation=interpolation),
        "dali_cpu": lambda images: DaliLoader(images, plan(images), device="cpu", **given),
    }
    if device.type == "cuda":
        makers["dali_gpu"] = lambda images: DaliLoader(images, plan(images), device="gpu", **given)
    return makers


def certificate(by_path: dict[str, Predictions]) -> dict[str, Any]:
    """certificate.json: the accuracy through each path, and its difference from PIL's."""
    reference = by_path[REFERENCE]
    figures: dict[str, Any] = {}
    for name, found in by_path.items():
        difference = paired_difference(found.correct, reference.correct)
        other = found.best[:, 0] != reference.best[:, 0]
        figures[name] = {
            "top1": percent(found.correct),
            "top5": percent(found.in_best),
            "difference": difference.difference,
            "interval": [difference.low, difference.high],
            "only_this_right": difference.only_a,
            "only_pil_right": difference.only_b,
            "largest_change_of_confidence": float(np.abs(found.confidence - reference.confidence).max()),
            "other_class": [found.files[row] for row in np.flatnonzero(other)],
        }
    return figures
