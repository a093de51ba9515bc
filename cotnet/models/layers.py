"""Layers that more than one family uses."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cotnet.errors import InputError

Activation = Callable[..., nn.Module]


def chain(module: nn.Module, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
    """Run the named children one after the other: a Sequential whose state-dict keys are names, not indices."""
    for name in names:
        x = getattr(module, name)(x)
    return x


def conv_norm(
    in_channels: int, channels: int, kernel_size: int = 1, stride: int = 1, *, dilation: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution without bias, padded by half its kernel, and its BatchNorm."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding, dilation, groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class DropPath(nn.Module):
    """Add a residual branch to its shortcut; in training, drop it for random images and scale it up for the others.

    Huang et al., "Deep Networks with Stochastic Depth" (2016). Draws the same numbers as
    `torchvision.ops.StochasticDepth` in row mode, whose import takes 1.4 s.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, shortcut: torch.Tensor, residual: torch.Tensor, *, reuse: bool = False) -> torch.Tensor:
        """shortcut + residual * kept, in one pass: two tensors (B, ...) -> the same shape.

        `reuse` allows to write the sum into the residual.
        """
        if not self.training or self.probability == 0:
            return residual.add_(shortcut) if reuse else shortcut + residual
        keep = 1 - self.probability
        return torch.addcmul(shortcut, residual, kept_samples(residual, keep))


def kept_samples(like: torch.Tensor, keep: float) -> torch.Tensor:
    """For each sample 1 / keep with probability `keep`, else 0: (B, ...) -> (B, 1, ...)."""
    return like.new_empty([len(like), *[1] * (like.ndim - 1)]).bernoulli_(keep).div_(keep or 1.0)


def growing(drop_path: float, blocks: int) -> Iterator[float]:
    """Each block's probability of drop path: linear in its depth, up to `drop_path` (equation 4 of the same paper)."""
    return (drop_path * number / max(blocks - 1, 1) for number in range(blocks))


class InputDtypeGroupNorm(nn.GroupNorm):
    """A group norm that stays in its input's dtype on a GPU, where autocast would copy whole maps to float32 and back.

    The GPU's kernel sums in float32, and rounds a group's mean and scale as it does the results.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return group_norm(input, self.num_groups, self.weight, self.bias, eps=self.eps)


def group_norm(
    maps: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, *, eps: float
) -> torch.Tensor:
    """`F.group_norm`, without autocast on a GPU."""
    if not maps.is_cuda:
        return F.group_norm(maps, groups, weight, bias, eps)
    with torch.autocast("cuda", enabled=False):
        return F.group_norm(maps, groups, weight.to(maps.dtype), bias.to(maps.dtype), eps)


# torch.fx records these calls whole.
torch.fx.wrap("group_norm")
torch.fx.wrap("kept_samples")


class SqueezeExcite(nn.Module):
    """A sigmoid gate per channel: Hu et al., "Squeeze-and-Excitation Networks" (2018), equations 2 to 4."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(squeezed))).sigmoid()


class SplitAttention(nn.Module):
    """A 3x3 convolution to `radix` maps and their weighted sum; attention over the maps weights each channel.

    (B, width, H, W) -> (B, width, H / stride, W / stride). With radix 1 the attention is a sigmoid gate.
    Zhang et al., "ResNeSt: Split-Attention Networks" (2020), section 3.
    """

    in_order = ("conv", "bn0", "act0", "fc1", "bn1", "act1", "fc2")

    def __init__(self, width: int, stride: int, *, radix: int, act: Activation, dilation: int = 1) -> None:
        super().__init__()
        self.radix = radix
        hidden = max(width * radix // 4, 32)
        self.conv, self.bn0 = conv_norm(width, width * radix, 3, stride, dilation=dilation, groups=radix)
        self.act0 = act(inplace=True)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act1 = act(inplace=True)
        self.fc2 = nn.Conv2d(hidden, width * radix, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        splits = self.act0(self.bn0(self.conv(x))).unflatten(1, (self.radix, -1))  # (B, radix, width, H, W)
        pooled = splits.sum(1).mean((2, 3), keepdim=True)
        logits = self.fc2(self.act1(self.bn1(self.fc1(pooled)))).unflatten(1, (self.radix, -1))
        attention = logits.softmax(1) if self.radix > 1 else logits.sigmoid()
        return (splits * attention).sum(1)


class SelectiveKernel(nn.Module):
    """3x3 convolutions of `dilation` and its double, summed with weights that attention over both gives each channel.

    (B, width, H, W) -> (B, width, H / stride, W / stride). Li et al., "Selective Kernel Networks" (2019), section 3.1;
    the 5x5 kernel is a dilated 3x3 one, as there. Names are those of timm's layer. Raises ValueError if `groups` does
    not divide `width`.
    """

    def __init__(self, width: int, stride: int = 1, *, groups: int = 32, dilation: int = 1) -> None:
        super().__init__()
        if width % groups:
            raise ValueError(f"SelectiveKernel cannot divide {width} channels into {groups} groups; give a divisor")
        dilations = (dilation, 2 * dilation)
        paths = [conv_norm(width, width, 3, stride, dilation=each, groups=groups) for each in dilations]
        self.paths = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=conv, bn=norm, act=nn.ReLU(inplace=True))) for conv, norm in paths
        )
        hidden = max(width // 16, 32)
        self.attn = nn.Sequential(
            OrderedDict(
                fc_reduce=nn.Conv2d(width, hidden, 1, bias=False),
                bn=nn.BatchNorm2d(hidden),
                act=nn.ReLU(inplace=True),
                fc_select=nn.Conv2d(hidden, 2 * width, 1, bias=False),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (path(x) for path in self.paths)
        logits = self.attn((first + second).mean((2, 3), keepdim=True)).unflatten(1, (2, -1))
        attention = logits.softmax(1)  # (B, 2, width, 1, 1)
        return first * attention[:, 0] + second * attention[:, 1]


class BlurPool(nn.Module):
    """Binomial 3x3 filter, then subsampling: Zhang, "Making Convolutional Networks Shift-Invariant Again" (2019).

    (B, C, H, W) -> (B, C, H / stride, W / stride). Borders are reflected: raises InputError for a map of one row or
    column. No state-dict keys.
    """

    kernel: torch.Tensor

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.register_buffer("kernel", _binomial(channels), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if min(x.shape[2:]) < 2:
            raise InputError(
                f"the images are too small for this backbone: its BlurPool takes maps of 2 x 2 px or more, not "
                f"{x.shape[2]} x {x.shape[3]}; use larger images (data.image_size, data.eval_size)"
            )
        # Pad by concatenation: the gradient of torch's reflection padding is not deterministic on a GPU.
        x = torch.cat([x[:, :, 1:2], x, x[:, :, -2:-1]], 2)
        x = torch.cat([x[..., 1:2], x, x[..., -2:-1]], 3)
        return F.conv2d(x, self.kernel, stride=self.stride, groups=self.channels)


class BlurredConv2d(nn.Conv2d):
    """BlurPool's filter, zero-padded and without its stride, before a strided convolution: as in FFCV's ResNet.

    (B, C, H, W) -> the convolution's output shape. Kernel, stride and state-dict keys are the convolution's.
    """

    kernel: torch.Tensor

    def __init__(self, in_channels: int, *settings: Any, **named: Any) -> None:
        super().__init__(in_channels, *settings, **named)
        self.register_buffer("kernel", _binomial(in_channels), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.conv2d(x, self.kernel, padding=1, groups=self.in_channels))


def _binomial(channels: int) -> torch.Tensor:
    line = torch.tensor([0.25, 0.5, 0.25])
    return torch.outer(line, line).repeat(channels, 1, 1, 1)  # (C, 1, 3, 3)


class HalvingPool(nn.Module):
    """2x2 average pool of stride 2; an odd last row or column is averaged alone.

    (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)), as with ceil_mode=True, but torch.export takes any H and W.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, x[:, :, -1:]], 2)
        x = torch.cat([x, x[..., -1:]], 3)
        return F.avg_pool2d(x, 2)
