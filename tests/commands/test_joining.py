"""Errors of a rank in one line, by the texts that torch and NCCL really give."""

import pytest
import torch

from cotnet.commands.joining import WHAT_FITS, plain_errors, unconnected
from cotnet.errors import RunError

NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error, NCCL version 2.27.3\n"
SYSTEM = "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.\n"
SYSTEM += "Last error:\n"
REFUSED = "socketPollConnect: connect to 10.0.0.5<43421> returned Connection refused, exceeded error retry"
TWICE = "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 17000"
REACH = "check MASTER_ADDR and MASTER_PORT, that rank 0 runs, and that no firewall is between"
REMEDY = (
    "NCCL_SOCKET_IFNAME names the network to use, NCCL_IB_DISABLE=1 leaves out InfiniBand, NCCL_DEBUG=INFO says more"
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f"{NCCL}{SYSTEM}{REFUSED}",
            f"cannot connect to the others by NCCL ({REFUSED}): {REMEDY}",
        ),
        (
            f"{NCCL}ncclInternalError: Internal check failed.\nLast error:\nBootstrap : no socket interface found",
            f"cannot connect to the others by NCCL (Bootstrap : no socket interface found): {REMEDY}",
        ),
        (
            f"{NCCL}ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n{TWICE}",
            f"shares a GPU with another rank ({TWICE}): start one rank per GPU",
        ),
        (
            "The client socket has timed out after 600000ms while trying to connect to (node003, 29500).",
            f"cannot reach rank 0 at node003:29500: {REACH}",
        ),
        (
            "The client socket has failed to connect to any network address of (10.0.0.5, 29500). The client socket "
            "has failed to connect to 10.0.0.5:29500 (errno: 111 - Connection refused).",
            f"cannot reach rank 0 at 10.0.0.5:29500: {REACH}",
        ),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3) ran for 600000 milliseconds", None),
        (f"{NCCL}ncclUnhandledCudaError: Call to CUDA function failed.", None),
    ],
)
def test_why_ranks_cannot_connect(text, line):
    assert unconnected(text) == line


CONFIG = {"output_dir": "nowhere", "train": {"batch_size": 256, "accumulation": 1}}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.10 GiB "
            "is free.",
            f"rank 0 ran out of memory when it asked for 2.00 GiB; lower train.batch_size=256 or "
            f"set train.accumulation=2; {WHAT_FITS}",
        ),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            f"rank 0 ran out of memory; lower train.batch_size=256 or set train.accumulation=2; {WHAT_FITS}",
        ),
        (
            f"{NCCL}ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
            "prematurely.\nLast error:\nsocketProgress: Connection closed by remote peer node003<48734>",
            "rank 0 lost its connection to another rank, which has died: look for its error, the same command resumes",
        ),
        (
            f"{NCCL}{SYSTEM}Call to bind failed",
            f"rank 0 cannot connect to the others by NCCL (Call to bind failed): {REMEDY}",
        ),
        (
            "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'.",
            "rank 0: grid_sampler_2d_backward_cuda has no deterministic algorithm; set train.deterministic=false to "
            "run without",
        ),
    ],
)
def test_an_error_of_a_rank_is_one_line(text, line, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RunError) as caught, plain_errors(CONFIG):
        raise RuntimeError(text)
    assert str(caught.value) == line


@pytest.mark.gpu
def test_a_gpu_that_has_too_little_memory(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RunError) as caught, plain_errors(CONFIG):
        torch.empty(2**44, dtype=torch.uint8, device="cuda")
    asked = "rank 0 ran out of memory when it asked for 16384.00 GiB; lower train.batch_size=256 or "
    assert str(caught.value) == f"{asked}set train.accumulation=2; {WHAT_FITS}"
