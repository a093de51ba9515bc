"""The module that is exported: a classifier, by choice with the evaluation's preprocessing before it.

All of it is plain torch, so a graph of it has standard operators only.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cotnet.settings import Interpolation


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an evaluation prepares images; fields as those of `data` in docs/contract.md."""

    eval_size: int
    crop_ratio: float
    eval_interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


class WithPreprocessing(nn.Module):
    """uint8 RGB images (B, 3, H, W) of any size -> class probabilities (B, num_classes), float32.

    The shorter side is resized to int(eval_size / crop_ratio), the centre of eval_size x eval_size is cropped, and
    mean and std are applied. Pixels are PIL's: both passes of its antialiased filter round to whole levels.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing
        for name in ("mean", "std"):
            values = 255 * torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.pixels(images)
        return self.model((pixels - self.get_buffer("mean")) / self.get_buffer("std")).softmax(1)

    def pixels(self, images: Tensor) -> Tensor:
        """Whole levels (B, 3, eval_size, eval_size), float32, of uint8 images (B, 3, H, W)."""
        rows, columns = (self._weights(images.shape[axis], images) for axis in (2, 3))
        pixels = _whole(images.to(torch.float32) @ columns)  # PIL's order: rows of pixels first
        return _whole(rows.transpose(0, 1) @ pixels)

    def _weights(self, side: int, images: Tensor) -> Tensor:
        """(side, eval_size): the share of each input position in each position of the crop. float64 within: a position
        in a large image needs more digits than float32 has."""
        own, shorter = self.preprocessing, torch.sym_min(*images.shape[2:])
        resized = int(own.eval_size / own.crop_ratio) * side // shorter  # of this side, before the crop
        excess = resized - own.eval_size
        offset = excess // 2 + (excess % 2) * (excess // 2 % 2)  # half of it, rounded half to even
        places = torch.arange(own.eval_size, device=images.device, dtype=torch.float64) + offset + 0.5
        scale: Any = side / resized
        inputs = torch.arange(side, device=images.device, dtype=torch.float64) + 0.5
        distance: Tensor = (inputs[:, None] - places * scale).abs() / torch.sym_max(scale, 1.0)
        weights = _bicubic(distance) if own.eval_interpolation == "bicubic" else (1 - distance).clamp(min=0)
        return (weights / weights.sum(0)).to(torch.float32)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as PIL has it, of distances (Keys, "Cubic Convolution Interpolation", 1981)."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _whole(pixels: Tensor) -> Tensor:
    return (pixels + 0.5).floor().clamp(0, 255)
