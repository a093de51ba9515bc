"""What the fork server of `launch` imports, once for all ranks. It must touch no GPU: CUDA does not survive a fork."""

from cotnet.engine.signals import end_with_launcher

end_with_launcher()  # before torch, whose import takes seconds

import torch._dynamo  # noqa: E402, F401 - torch, and what the first optimizer step would import
