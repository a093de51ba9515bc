"""Every backbone by its published name; images (B, in_channels, H, W) -> logits (B, num_classes).

`__all__` holds constructors only: it is the list of what a checkpoint may name.
"""

from cotnet.models.cotnet import cotnet50, cotnet101, cotnet_small
from cotnet.models.external import timm_model, torchvision_model
from cotnet.models.pvt import pvt_tiny
from cotnet.models.resnet import resnet50

__all__ = ["cotnet50", "cotnet101", "cotnet_small", "pvt_tiny", "resnet50", "timm_model", "torchvision_model"]
