"""Number and memory formats of a run, and what they set up in its process."""

import ctypes
import sys
from dataclasses import dataclass

import torch
from torch import nn

from cotnet.errors import InputError
from cotnet.settings import ChannelsLast, TrainSettings

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
TRIM_THRESHOLD, MMAP_MAX, NEVER = -1, -4, -1  # of mallopt, in malloc.h of the GNU C library


@dataclass(frozen=True, kw_only=True)
class Precision:
    """`parameters`: dtype of weights and inputs; `compute`: dtype of autocast's matrix products.

    bf16 and fp16: mixed precision with float32 weights, fp16 with a loss scaler. tf32: float32 with products rounded to
    10 bits of mantissa on tensor cores. fp64: for exactness checks. `channels_last`: memory format of images and
    convolution kernels.
    """

    name: str
    device: torch.device
    channels_last: bool = False

    @property
    def compute(self) -> torch.dtype:
        return DTYPES[self.name]

    @property
    def parameters(self) -> torch.dtype:
        return torch.float64 if self.name == "fp64" else torch.float32

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def to_device(self, model: nn.Module) -> nn.Module:
        """The model on the device, in these formats."""
        return model.to(self.device, self.parameters, memory_format=self.layout)  # type: ignore[call-overload]

    def autocast(self) -> torch.autocast:
        mixed = self.name in ("bf16", "fp16")
        return torch.autocast(self.device.type, self.compute if mixed else torch.bfloat16, enabled=mixed)

    def set_up_process(self) -> None:
        """Allows or forbids TF32 for tf32 and fp32 (other precisions keep torch's default), and tunes the CPU
        allocator."""
        keep_freed_memory(self.device)
        if self.device.type == "cuda" and self.name in ("tf32", "fp32"):
            torch.backends.cuda.matmul.allow_tf32 = self.name == "tf32"
            torch.backends.cudnn.allow_tf32 = self.name == "tf32"

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def keep_freed_memory(device: torch.device) -> None:
    """Keeps memory that CPU tensors have freed for new tensors, as a GPU's caching allocator does.

    The GNU C library returns large blocks to the system at once; getting the same pages back took a fifth of a training
    step. The process keeps its peak memory. Does nothing with another C library or on a GPU.
    """
    if device.type == "cpu" and sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, NEVER)


def precision_of(settings: TrainSettings, device: torch.device) -> Precision:
    """The formats of a run on this device; errors as in `choose_precision`."""
    name = choose_precision(settings.precision, device)
    return Precision(name=name, device=device, channels_last=is_channels_last(settings.channels_last, device))


def is_channels_last(given: ChannelsLast, device: torch.device) -> bool:
    """The memory format on this device: `auto` is channels_last on a GPU. It also suits PVT, whose tokens (B, N, C) are
    maps in channels_last."""
    return device.type == "cuda" if given == "auto" else given


def choose_precision(name: str, device: torch.device, *, key: str = "train.precision") -> str:
    """Resolves `auto`: bf16 if the device has it, else fp16 on a GPU and fp32 on a CPU. Raises InputError, which names
    the setting `key`, for an unknown name, bf16 on a GPU that does not compute in it, and tf32 without such a GPU."""
    gpu = device.type == "cuda"
    ampere = gpu and torch.cuda.get_device_capability(device) >= (8, 0)
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    bf16 = ampere if gpu else cpu.get("avx512_bf16") or cpu.get("amx_bf16")
    if name == "auto":
        return "bf16" if bf16 else "fp16" if gpu else "fp32"
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError(f"{key}={name} is unknown; valid: auto, {', '.join(DTYPES)}")
    if name == "bf16" and gpu and not bf16:
        raise InputError(f"{key}=bf16 needs a GPU of compute capability 8.0 or newer; use {key}=fp16")
    if name == "tf32" and not ampere:
        raise InputError(f"{key}=tf32 needs a GPU of compute capability 8.0 or newer; use {key}=fp32")
    return name
