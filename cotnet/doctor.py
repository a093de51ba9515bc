"""What this machine has, and what a run would use: `python -m cotnet.doctor [key=value] ...`, on one page.

The overrides are train.py's. Nothing is changed, no server is asked. Exit code 1 where a run could not start.
"""

import sys
from collections.abc import Sequence

import torch
from PIL import features

from cotnet import image_parts, parts
from cotnet.commands.checks import Lines, image_lines, machine_lines, show
from cotnet.commands.program import one_line
from cotnet.commands.train import commands_of
from cotnet.config.compose import Config, compose
from cotnet.config.plugins import admit
from cotnet.engine.compilation import missing_compilers
from cotnet.engine.launch import count_ranks
from cotnet.ops.toolchain import missing_for_kernels
from cotnet.reporting.environment import driver, machine, versions
from cotnet.reporting.terminal import say
from cotnet.reporting.wandb_session import login_state


def hardware() -> Lines:
    """Processor, GPUs, driver, compilers."""
    found = machine()
    yield "processor", f"{found['processor']}, {found['cores']} usable cores, {found['memory_gib']:.0f} GiB memory"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, capability {gpu.major}.{gpu.minor}"
    if not torch.cuda.is_available():
        yield "GPU", f"none usable ({'torch is a CUDA build' if torch.version.cuda else 'torch is a CPU build'})"
    yield "driver", driver() or "none"
    lacking = missing_for_kernels()
    yield "C compiler", f"kernels for GPUs need {lacking}" if lacking else "there, with Python's headers"
    lacking = missing_compilers(torch.device("cpu"))
    yield "C++ compiler", f"torch.compile on a CPU needs {lacking}" if lacking else "there"


def software() -> Lines:
    """Versions, decoders, W&B."""
    found = machine()["versions"]
    yield "python", f"{found.pop('python')} at {sys.executable}"
    yield "torch", f"{found.pop('torch')}, CUDA {torch.version.cuda or 'none'}"
    dali = {name: number for name, number in found.items() if "dali" in name}
    yield "DALI", ", ".join(f"{number} ({name})" for name, number in dali.items()) or "missing: use loader=torchvision"
    others = {name: number for name, number in found.items() if name not in dali}
    yield "others", ", ".join(f"{name} {number}" for name, number in others.items())
    on = "the GPU (nvJPEG) and the CPU" if torch.cuda.is_available() else "the CPU"
    turbo = features.version_feature("libjpeg_turbo")
    pil = f"libjpeg-turbo {turbo}" if turbo else "libjpeg"
    yield "decoders", f"DALI on {on}; PIL with {pil}{', WebP' if features.check('webp') else ', no WebP'}"
    yield "W&B", f"{versions(('wandb',)).get('wandb', 'missing')}, {login_state()}"


def choices(config: Config) -> Lines:
    """What a run of this configuration would use; the first problem raises as it would in train.py."""
    run = parts.run_sections(config)
    yield from machine_lines(config, run["train"], count_ranks(run["launch"].ranks))
    commands_of(config).checked(config)
    if parts.is_dense(config):
        return
    data = parts.read_settings(config).data
    yield from image_lines(data, *image_parts.read_data(data))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page; exits with 1 where the run named by the overrides could not start."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    overrides = given or ["experiment=digits"]
    with one_line(keep=False):
        config = compose("train", overrides)
        admit(config.get("plugins", ()))
    run = f"A run of: train.py {' '.join(overrides)}"
    for title, page in {"This machine": hardware, "Software": software, run: lambda: choices(config)}.items():
        say(title)
        refused = show(page)
    sys.exit(int(bool(refused and given)))  # without a question, a set that is not there yet is no failure


if __name__ == "__main__":
    main()
