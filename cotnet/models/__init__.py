"""Every backbone by its published name; images (B, in_channels, H, W) -> logits (B, num_classes).

`__all__` holds constructors only: a checkpoint may name these and nothing else. Each family lists its own.
"""

from cotnet.models import botnet, cotnet, external, global_attention, local_attention, operators, pvt, pvt_v2, resnet
from cotnet.models.botnet import *
from cotnet.models.cotnet import *
from cotnet.models.external import *
from cotnet.models.global_attention import *
from cotnet.models.local_attention import *
from cotnet.models.operators import *
from cotnet.models.pvt import *
from cotnet.models.pvt_v2 import *
from cotnet.models.resnet import *
from cotnet.models.timm_protocol import register

__all__ = botnet.__all__ + cotnet.__all__ + pvt.__all__ + pvt_v2.__all__ + resnet.__all__ + external.__all__
__all__ += global_attention.__all__ + local_attention.__all__ + operators.__all__


def register_timm() -> list[str]:
    """Lets `timm.create_model(name)` build the networks of this package; returns the new names.

    A name that timm has itself (resnet50, pvt_v2_b0) stays timm's. Settings may have timm's names: drop_rate,
    drop_path_rate, in_chans, img_size.
    """
    return register({name: globals()[name] for name in __all__ if not name.endswith("_model")})
