"""The settings of the augmentation, with their ranges. The defaults are in conf/augmentation/none.yaml."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cotnet.errors import DataError
from cotnet.settings import Interpolation, Section, number, setting
from data.augmentation.policies import parse

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True)
class Augmentation(Section):
    """What is drawn for a training sample. 0 turns a part off."""

    crop_scale: tuple[float, float] | None = setting(
        "random resized crop: least and largest share of the image's area; null: the evaluation's central crop",
        least=0.0001,
        most=1,
    )
    crop_ratio: tuple[float, float] = setting(
        "random resized crop: least and largest width / height", least=0.01, most=100
    )
    interpolation: Interpolation = setting("`bilinear` or `bicubic`, antialiased")
    flip: float = setting("probability of a left-right mirror image", least=0, most=1)
    vertical_flip: float = setting("probability of a top-bottom mirror image", least=0, most=1)
    repeats: int = setting(
        "crops of each image within a batch, in different micro-batches; the epoch stays as long, so it sees fewer "
        "images (PVT: 3)",
        least=1,
        most=1000,
    )
    progressive: tuple[int, float, float] | None = setting(
        "smallest image size in pixels, and the epochs from and until which it grows to `data.image_size`; null: one "
        "size"
    )
    color_jitter: float = setting(
        "c: brightness, contrast and saturation by factors in [1 - c, 1 + c], in drawn order with hue", least=0, most=1
    )
    hue: float = setting("largest shift of the hue, as a share of the colour circle", least=0, most=0.5)
    policy: str | None = setting(
        "a RandAugment or TrivialAugment policy, such as `rand-cot-m15-n2-mstd0.5`, `rand-timm-m9-n2-mstd0.5-inc1`, "
        "`rand-torchvision-m9-n2` or `trivial-wide`"
    )
    mixup: float = setting("alpha of lambda's Beta(alpha, alpha)", off=0, least=0.01, most=100)
    cutmix: float = setting("alpha of lambda's Beta(alpha, alpha)", off=0, least=0.01, most=100)
    switch: float = setting("probability of cutmix if both are on", least=0, most=1)
    mix_by: Literal["batch", "pair", "element"] = setting("what has a draw of its own: `batch`, `pair` or `element`")
    mix_epochs: int | None = setting("epochs after which mixup and cutmix end; null: never", least=0)
    erasing: float = setting("probability of random erasing", least=0, most=1)
    erasing_fill: Literal["const", "rand", "pixel"] = setting(
        "`const` (the mean), `rand` (one normal colour) or `pixel` (normal noise)"
    )

    def own_operation(self, images: "torch.Tensor", samples: "np.ndarray", *, seed: int, epoch: int) -> "torch.Tensor":  # noqa: ARG002
        """What a plug-in's derived class does to a batch, after the policy: images (n, 3, H, W) uint8 on the device to
        the same shape. `samples` are the batch's plan indices (n,); draws depend on (seed, epoch, sample) alone, as
        those of data.loading.random.uniforms."""
        return images

    def __post_init__(self) -> None:
        """Raises DataError for values that do not go together."""
        super().__post_init__()
        for name in ("crop_scale", "crop_ratio"):
            bounds = getattr(self, name)
            if bounds and bounds[0] > bounds[1]:
                raise DataError(
                    f"{name}=[{number(bounds[0])},{number(bounds[1])}] begins with the larger; swap the two"
                )
        if self.policy is not None:
            parse(self.policy)
