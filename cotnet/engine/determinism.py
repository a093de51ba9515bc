"""`train.deterministic`: on a GPU the same bits every time, which exact continuation needs. A CPU needs nothing."""

import os
from typing import Final

import torch

VARIABLES: Final = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS: else its workspace, and so its algorithm, varies
    "NCCL_ALGO": "^NVLS,NVLSTree",  # NCCL: sums within the switch are in no fixed order
    "TORCHINDUCTOR_DETERMINISTIC": "1",  # torch.compile: else it chooses reductions by timing them
}


def set_variables(*, deterministic: bool, gpu: bool) -> str | None:
    """Sets the variables that libraries read, for this process and those it starts; call it before the first CUDA call.
    A variable that is set already stays. Returns a line for people; None without a GPU, where nothing is set."""
    if not gpu:
        return None
    if not deterministic:
        fast = "cuDNN takes the fastest algorithms it finds"
        return f"train.deterministic=false: {fast}; a run that is cut and continued may differ in the last bits"
    yours = [f"{name}={os.environ[name]}" for name, value in VARIABLES.items() if os.environ.get(name, value) != value]
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    ours = [f"{name}={value}" for name, value in VARIABLES.items() if os.environ[name] == value]
    kept = f"; your {' and '.join(yours)} kept" if yours else ""
    return f"train.deterministic=true: deterministic algorithms of torch and cuDNN, {', '.join(ours)}{kept}"


def set_algorithms(device: torch.device, *, deterministic: bool) -> None:
    """Sets the algorithms of this process. Where torch has only one that is not deterministic, it runs, and torch names
    it in a warning: refusing it would forbid backbones of other libraries."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a check for bugs, which costs a pass over new tensors
