"""One process as a rank: joins the other ranks, receives stop signals, turns errors into one line."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed as dist

from cotnet.config.build import typed
from cotnet.config.compose import Config, flatten
from cotnet.config.continuing import memory_advice
from cotnet.config.plugins import admit
from cotnet.engine.determinism import not_deterministic
from cotnet.engine.distributed import Ranks, join_ranks
from cotnet.engine.launch import HANGING, LOST, PEER_GONE
from cotnet.engine.signals import StopRequest, stop_request
from cotnet.errors import RunError
from cotnet.settings import LaunchSettings

# CUDA, torch, NumPy, DALI, cuBLAS and cuDNN
NO_MEMORY = r"(?i)out of memory|allocate memory|unable to allocate|bad_alloc|STATUS_ALLOC_FAILED"


WHAT_FITS = "python -m cotnet.benchmarks.bottleneck with the same settings finds the batch that fits"


@contextmanager
def joined(config: Config, store: dist.Store | None) -> Iterator[tuple[Ranks, StopRequest]]:
    """This process as one rank of a run, and its stop request."""
    admit(config.get("plugins", ()))  # a rank is a process of its own
    minutes = typed(LaunchSettings, config["launch"], "launch").timeout_minutes
    with (
        stop_request() as stop,
        plain_errors(config),
        join_ranks(store, timeout_minutes=minutes) as ranks,
    ):
        yield ranks, stop


@contextmanager
def plain_errors(config: Config) -> Iterator[None]:
    """Turns errors that a person can mend into one line: bad data, too little memory, a full or read-only disk, a rank
    that died or hangs."""
    rank, folder = os.environ.get("RANK", "0"), config["output_dir"]
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error)):
            tried = f"; {WHAT_FITS}" if "CUDA" in str(error) and "train" in config else ""
            asked = _asked_for(str(error))
            raise RunError(f"rank {rank} ran out of memory{asked}; {_less_memory(config)}{tried}") from None
        if re.search(PEER_GONE, str(error)):
            raise RunError(
                f"rank {rank} {LOST}, which has died: look for its error, the same command resumes"
            ) from None
        if line := unconnected(str(error)):
            raise RunError(f"rank {rank} {line}") from None
        if line := not_deterministic(str(error)):
            raise RunError(f"rank {rank}: {line}; set train.deterministic=false to run without") from None
        if not re.search(r"(?i)timed ?out", str(error)):
            raise
        raise RunError(f"rank {rank} timed out waiting for another rank, which hangs or has died: {HANGING}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG):
            raise
        raise RunError(
            f"cannot write into {folder}: {error.strerror}; make room there, the same command resumes"
        ) from None


def unconnected(text: str) -> str | None:
    """Why a rank cannot connect to the others, with the remedy, by the text of torch's or NCCL's error; None for any
    other error."""
    if found := re.search(r"client socket has (?:failed|timed out).*?\(([^\s,]+), (\d+)\)", text):
        return (
            f"cannot reach rank 0 at {found[1]}:{found[2]}: check MASTER_ADDR and MASTER_PORT, that rank 0 runs, and "
            "that no firewall is between"
        )
    last = re.search(r"Last error:\s*(\S.*)", text)
    detail = f" ({last[1].strip()})" if last else ""
    if "Duplicate GPU" in text:
        return f"shares a GPU with another rank{detail}: start one rank per GPU"
    if not re.search(r"nccl(System|Internal|Remote)Error", text):
        return None
    return (
        f"cannot connect to the others by NCCL{detail}: NCCL_SOCKET_IFNAME names the network to use, NCCL_IB_DISABLE=1 "
        "leaves out InfiniBand, NCCL_DEBUG=INFO says more"
    )


def _asked_for(text: str) -> str:
    """The size of the failed allocation, if torch or NumPy name it."""
    found = re.search(r"(?i)(?:tried to|unable to) allocate (\d[\d.]* \w+)", text)
    return f" when it asked for {found[1]}" if found else ""


def _less_memory(config: Config) -> str:
    """Advice for this run; once it has a checkpoint, only settings that may still change."""
    begun = (Path(config["output_dir"]) / "checkpoints" / "last.pt").exists()
    return memory_advice(flatten(config), begun=begun)
