"""`train.deterministic`: on a GPU the same bits every time, which exact continuation needs. A CPU needs nothing."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        any_of_them = "torch and cuDNN may take any algorithm"
        return f"train.deterministic=false: {any_of_them}; a run that is cut and continued may differ in the last bits"
    yours = [f"{name}={os.environ[name]}" for name, value in VARIABLES.items() if os.environ.get(name, value) != value]
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    ours = [f"{name}={value}" for name, value in VARIABLES.items() if os.environ[name] == value]
    kept = f"; your {' and '.join(yours)} kept" if yours else ""
    return f"train.deterministic=true: deterministic algorithms of torch and cuDNN, {', '.join(ours)}{kept}"


def set_algorithms(
    device: torch.device, *, deterministic: bool, strict: bool = False, sizes_vary: bool = False
) -> None:
    """Sets the algorithms of this process. Where torch has only one that is not deterministic, it runs, and torch names
    it in a warning; `strict`: it raises RuntimeError. Without `deterministic` cuDNN times its algorithms for each size
    of its inputs and takes the fastest, unless `sizes_vary`: then it would time more than it saves."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not (deterministic or sizes_vary)
    torch.use_deterministic_algorithms(deterministic, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a check for bugs, which costs a pass over new tensors


@contextmanager
def forward_only() -> Iterator[None]:
    """For operators whose backward pass alone has no fixed order, where there is none: torch's form of them for
    `use_deterministic_algorithms` takes several times their memory."""
    on, loose = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if not on:
        yield
        return
    torch.use_deterministic_algorithms(mode=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=loose)


def strict_if_possible(
    device: torch.device, *, deterministic: bool, trial: Callable[[], object], any_rank: Callable[[bool], bool]
) -> str | None:
    """Strict algorithms, unless `trial`, a forward and backward pass, needs one that is not deterministic: then a line
    for people; collective. (Strictness for all would forbid backbones of other libraries.)

    Strictness changes numbers: the backward pass of torch's fused attention is deterministic only with it. Where torch
    is to warn, it warns of that pass too.
    """
    if device.type != "cuda" or not deterministic:
        return None
    set_algorithms(device, deterministic=True, strict=True)
    why = ""
    try:
        trial()
    except RuntimeError as error:
        if not (why := not_deterministic(str(error))):
            raise
    if not any_rank(bool(why)):
        return None
    set_algorithms(device, deterministic=True)
    what = why or "on another rank, something is not deterministic"
    return f"train.deterministic=true: {what}; a run that is cut and continued may differ in the last bits"


def not_deterministic(text: str) -> str:
    """What is not deterministic by the text of torch's error in strict mode; empty for any other error."""
    if found := re.match(r"(\S+) does not have a deterministic implementation", text):
        return f"{found[1]} has no deterministic algorithm"
    return "cuBLAS needs CUBLAS_WORKSPACE_CONFIG=:4096:8" if "CUBLAS_WORKSPACE_CONFIG" in text else ""
