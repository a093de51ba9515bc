"""GPUs that are there but cannot be used: one line instead of a run on the CPU."""

import os
import re

import torch

from cotnet.errors import InputError

ON_CPU = "set CUDA_VISIBLE_DEVICES= to compute on the CPU"


def require_usable_gpus() -> None:
    """Raises InputError if this machine has a driver that torch cannot use. An empty CUDA_VISIBLE_DEVICES asks for the
    CPU."""
    if torch.version.cuda is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "" or torch.cuda.is_available():
        return
    try:
        torch.cuda.init()
    except RuntimeError as error:
        if line := driver_problem(str(error), str(torch.version.cuda)):
            raise InputError(line) from None


def driver_problem(text: str, cuda: str) -> str | None:
    """What is wrong with the driver by torch's error text, for a torch of this CUDA version; None: there is no GPU."""
    if found := re.search(r"driver on your system is too old \(found version (\d+)\)", text):
        version = f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"  # 11040 is 11.4
        return (
            f"the NVIDIA driver is too old: it knows CUDA {version}, this torch needs CUDA {cuda}; update the driver, "
            f"install a torch for CUDA {version}, or {ON_CPU}"
        )
    found = re.search(r"Error (\d+): (.+)", text)
    if found is None or found[1] == "100":  # no CUDA-capable device
        return None
    return f"the GPUs cannot be used (CUDA error {found[1]}: {found[2].strip()}); mend the driver, or {ON_CPU}"
