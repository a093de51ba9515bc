"""The Contextual Transformer block.

Li et al., "Contextual Transformer Networks for Visual Recognition" (2021), section 3. State-dict keys are those of the
authors' release.
"""

from typing import Literal, TypeGuard, get_args

import torch
from torch import nn
from torch.nn import functional as F

from cotnet.models.layers import InputDtypeGroupNorm, conv_norm
from cotnet.ops import TRITON, local_aggregation
from cotnet.ops.toolchain import missing_for_kernels

Fusion = Literal["static", "dynamic", "linear", "attention"]
CHANNELS_PER_KERNEL = 8  # channels that share one local kernel; the paper's C_h heads are C / CHANNELS_PER_KERNEL


# torch.fx records these calls whole: they look at shapes.
torch.fx.wrap("local_aggregation")


class CoTLayer(nn.Module):
    """The Contextual Transformer block: (B, C, H, W) -> (B, C, H, W), any H and W.

    `fusion` is the block's output (the ablation of section 4): the static context, the dynamic context, their sum
    ("linear"), or their sum weighted by attention. `groups` are the groups of the 1x1 convolutions and of the local
    kernels (2 in CoTNeXt), `key_groups` those of the key embedding. Raises ValueError for channels that the groups do
    not divide, an even kernel size or an unknown fusion.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        groups: int = 1,
        key_groups: int = 4,
        fusion: Fusion = "attention",
        dilation: int = 1,
    ) -> None:
        super().__init__()
        if channels % (CHANNELS_PER_KERNEL * groups) or channels % key_groups:
            divisors = f"{CHANNELS_PER_KERNEL * groups} and {key_groups}"
            raise ValueError(f"CoTLayer cannot divide {channels} channels; give a multiple of {divisors}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} has no centre; give an odd one")
        if fusion not in get_args(Fusion):
            raise ValueError(f"unknown fusion {fusion!r}; give one of {', '.join(get_args(Fusion))}")
        self.groups, self.kernel_positions, self.dilation, self.fusion = groups, kernel_size**2, dilation, fusion
        embedding = conv_norm(channels, channels, kernel_size, dilation=dilation, groups=key_groups)
        self.key_embed = nn.Sequential(*embedding, nn.ReLU(inplace=True))
        if fusion == "static":
            return
        kernels = channels // CHANNELS_PER_KERNEL
        self.embed = nn.Sequential(
            *conv_norm(2 * channels, channels // 2, groups=groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 2, self.kernel_positions * kernels, 1, groups=groups),
            InputDtypeGroupNorm(kernels, self.kernel_positions * kernels),
        )
        self.conv1x1 = nn.Sequential(*conv_norm(channels, channels, groups=groups))
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.SiLU()  # not in place: that would save a copy of its input
        if fusion == "attention":
            hidden = max(channels // 2, 32)
            self.se = nn.Sequential(
                nn.Conv2d(channels, hidden, 1),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, 2 * channels, 1),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        static_context: torch.Tensor = self.key_embed(x)  # K1
        if self.fusion == "static":
            return static_context
        dynamic_context = self.attend(x, static_context)  # K2
        if self.fusion == "dynamic":
            return dynamic_context
        if self.fusion == "linear":
            return static_context + dynamic_context
        return self.fuse(static_context, dynamic_context)

    def attend(self, x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The dynamic context K2 = V * A with the local kernels A = [K1, Q] W_theta W_delta, without a softmax."""
        context = local_aggregation(self.conv1x1(x), self.local_kernels(x, keys), dilation=self.dilation)
        return self.act(self.bn(context))

    def local_kernels(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The embedding of [keys, queries]: twice (B, C, H, W) -> (B, groups, G, K * K, H, W).

        The first convolution is linear: it is applied to each and the results are added. This saves the memory of a
        concatenation. With groups, its input channels alternate between queries and keys, so each group sees both. A
        convolution that carries hooks or parametrizations, or was replaced, is called with the concatenation.
        """
        first, *others, last, norm = self.embed
        if is_plain(first):
            y = self.embed_apart(first, queries, keys)
        else:
            y = first(torch.stack([queries, keys], 2 if self.groups > 1 else 1).flatten(1, 2))
        for layer in others:
            y = layer(y)
        compiled = torch.compiler.is_compiling() and y.is_cuda and y.is_contiguous(memory_format=torch.channels_last)
        if compiled and is_plain(last) and isinstance(norm, nn.GroupNorm):
            return taps_before_groups(y, last, norm)
        return norm(last(y)).unflatten(1, (self.groups, -1, self.kernel_positions))

    def embed_apart(self, first: nn.Conv2d, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """The first convolution of the embedding without the concatenation of its inputs."""
        if self.groups == 1:
            of_queries, of_keys = first.weight.chunk(2, 1)
        else:
            of_queries, of_keys = first.weight[:, 0::2], first.weight[:, 1::2]
        y = F.conv2d(queries, of_queries, first.bias, groups=self.groups)
        return y.add_(F.conv2d(keys, of_keys, groups=self.groups))

    def fuse(self, static_context: torch.Tensor, dynamic_context: torch.Tensor) -> torch.Tensor:
        """Attention over the two contexts, channel by channel, as in selective kernels (Li et al., 2019).

        The softmax of two logits is the sigmoid of their difference, so the result interpolates between the contexts.
        """
        # Sum, then divide the small result: the gradient of `mean` would divide whole maps.
        height, width = static_context.shape[2:]
        wide = torch.promote_types(static_context.dtype, torch.float32)
        static_sum, dynamic_sum = (x.sum((2, 3), keepdim=True, dtype=wide) for x in (static_context, dynamic_context))
        pooled = ((static_sum + dynamic_sum) / (height * width)).to(static_context.dtype)
        dynamic, static = self.se(pooled).unflatten(1, (-1, 2)).unbind(2)  # (B, C, 1, 1) each
        gate = (dynamic - static).sigmoid().to(static_context.dtype)
        return torch.lerp(static_context, dynamic_context, gate)


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a call only convolves with the weight: a Conv2d with its own forward, no hooks, no parametrizations."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    plain = type(module) is nn.Conv2d and "forward" not in vars(module)
    return plain and not any(getattr(module, name) for name in hooks)


def taps_before_groups(x: torch.Tensor, conv: nn.Conv2d, norm: nn.GroupNorm) -> torch.Tensor:
    """`norm(conv(x))` of a channels_last map, as local kernels (B, groups, G, K * K, H, W), for a compiler to fuse.

    In memory, the G values of a kernel position are neighbours, so that a thread of the operator's kernel reads up to
    eight at a time: the convolution's output channels are reordered, and the norm's statistics taken over strides.
    (The GroupNorm of torch returns contiguous maps on a GPU.)
    """
    groups = conv.groups
    sizes = (groups, norm.num_groups // groups, -1)  # (groups, G, K * K)
    parameters = (*conv.parameters(), *norm.parameters())  # weight and bias of each
    weight, bias, gain, offset = (parameter.unflatten(0, sizes).transpose(1, 2) for parameter in parameters)
    y = F.conv2d(x, weight.flatten(0, 2), bias.flatten(), groups=groups).unflatten(1, weight.shape[:3])
    wide = y.float() if y.dtype.itemsize < 4 else y
    var, mean = torch.var_mean(wide, (2, 4, 5), correction=0, keepdim=True)  # (B, groups, 1, G, 1, 1)
    wide = (wide - mean) * (var + norm.eps).rsqrt() * gain[..., None, None] + offset[..., None, None]
    return wide.to(y.dtype).transpose(2, 3)


def operator_line(model: nn.Module, device: torch.device) -> str | None:
    """A line for people if CoT runs without its kernels on a GPU, else None."""
    if device.type != "cuda" or TRITON or not any(isinstance(module, CoTLayer) for module in model.modules()):
        return None
    lacking = missing_for_kernels() or "the package triton; install it"
    return f"CoT runs its PyTorch form, which is slower: its kernels need {lacking}"
