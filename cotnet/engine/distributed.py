"""The ranks of a run and their communication."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cotnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process and its peers. `control`: a gloo group for messages between hosts, beside NCCL's group."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums in place over ranks."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """All ranks' items in order on rank 0; an empty list elsewhere. Tensors must be on the CPU."""
        if self.world_size == 1:
            return [item]
        items: list[Any] | None = [None] * self.world_size if self.first else None
        dist.gather_object(item, items, group=self.control)
        return items or []

    def broadcast(self, item: Any) -> Any:
        """Rank 0's item on every rank."""
        if self.world_size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, group=self.control)
        return box[0]

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        """Whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        shared = torch.tensor(int(flag))
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self.control)
        return bool(shared)


@contextlib.contextmanager
def join_ranks(store: dist.Store | None = None, *, timeout_minutes: float) -> Iterator[Ranks]:
    """Joins the other ranks as torchrun's variables say (RANK, WORLD_SIZE, LOCAL_RANK). Collectives that exceed the
    timeout raise. On a CPU each rank uses its share of the cores, unless OMP_NUM_THREADS is set."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():  # a cluster may show each process only its own GPU
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))))
    if world_size == 1:
        yield Ranks(rank=0, world_size=1, device=device)
        return
    gpu, timeout = device.type == "cuda", datetime.timedelta(minutes=timeout_minutes)
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if gpu else None,
    )
    try:
        control = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(control, dist.ProcessGroup)  # every rank is a member
        yield Ranks(rank=rank, world_size=world_size, device=device, control=control)
        dist.barrier()  # no rank closes its connections while another still uses them
    finally:
        dist.destroy_process_group()


def synchronised(model: nn.Module) -> nn.Module:
    """The model with BatchNorm statistics over all ranks; keys and parameters stay. Raises InputError for a subclass of
    BatchNorm, which torch would convert into a plain one."""
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for name, module in model.named_modules():
        if isinstance(module, plain) and type(module) not in plain:
            raise InputError(f"train.sync_bn=true does not know {name}, a {type(module).__name__}; set it to false")
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


class Agreement:
    """The same flags on every rank at the same step, without waiting for the device or the network: at each step every
    rank starts a reduction of its flags on the host, and reads the previous step's, which has finished by then."""

    def __init__(self, ranks: Ranks, flags: int) -> None:
        self.ranks = ranks
        self.pending: dist.Work | None = None
        self.shared = torch.zeros(flags, dtype=torch.int32)

    def exchange(self, *flags: bool) -> list[bool]:
        """Starts the reduction of these flags; returns the previous step's result (on one rank: these flags)."""
        if self.ranks.world_size == 1:
            return list(flags)
        decided = self.settle()
        self.shared = torch.tensor(flags, dtype=torch.int32)
        self.pending = dist.all_reduce(self.shared, op=dist.ReduceOp.MAX, group=self.ranks.control, async_op=True)
        return decided

    def settle(self) -> list[bool]:
        """Waits for the last reduction; returns its result."""
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        return [bool(flag) for flag in self.shared]


def average_buffers(ranks: Ranks, *modules: nn.Module) -> None:
    """Replaces floating-point buffers (BatchNorm's running statistics) by their mean over ranks, computed in float64:
    averaging equal float32 buffers changes nothing."""
    buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
    if ranks.world_size == 1 or not buffers:
        return
    flat = ranks.sum(torch.cat([b.flatten().double() for b in buffers])) / ranks.world_size
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
