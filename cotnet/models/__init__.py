"""Every backbone by its published name; images (B, in_channels, H, W) -> logits (B, num_classes).

`__all__` holds constructors only: it is the list of what a checkpoint may name.
"""

from cotnet.models.botnet import (
    botnet50,
    botnet101,
    botnet152,
    botnet200,
    botnet_s1_50,
    botnet_s1_59,
    botnet_s1_77,
    botnet_s1_110,
    botnet_s1_128,
)
from cotnet.models.cotnet import (
    cotnet50,
    cotnet101,
    cotnet_small,
    cotnext50_2x48d,
    cotnext101_2x48d,
    se_cotnetd_50,
    se_cotnetd_101,
    se_cotnetd_152,
)
from cotnet.models.external import timm_model, torchvision_model
from cotnet.models.pvt import pvt_large, pvt_medium, pvt_small, pvt_tiny
from cotnet.models.resnet import (
    resnest50,
    resnest101,
    resnet50,
    resnet50_blurpool,
    resnet50d,
    resnet101,
    resnet101d,
    resnet152,
    resnet_small,
    resnext50_32x4d,
    resnext101_32x4d,
    seresnet50,
    seresnet50d,
    seresnet101,
)

__all__ = [
    "botnet50",
    "botnet101",
    "botnet152",
    "botnet200",
    "botnet_s1_50",
    "botnet_s1_59",
    "botnet_s1_77",
    "botnet_s1_110",
    "botnet_s1_128",
    "cotnet50",
    "cotnet101",
    "cotnet_small",
    "cotnext50_2x48d",
    "cotnext101_2x48d",
    "pvt_large",
    "pvt_medium",
    "pvt_small",
    "pvt_tiny",
    "resnest50",
    "resnest101",
    "resnet50",
    "resnet50_blurpool",
    "resnet50d",
    "resnet101",
    "resnet101d",
    "resnet152",
    "resnet_small",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "se_cotnetd_50",
    "se_cotnetd_101",
    "se_cotnetd_152",
    "seresnet50",
    "seresnet50d",
    "seresnet101",
    "timm_model",
    "torchvision_model",
]
