"""The ranks of one run and what they tell each other."""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cotnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among its peers. `control` is a gloo group for host-side messages beside NCCL's."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum in place over ranks."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """Every rank's item on rank 0, in order; an empty list elsewhere. Tensors must be on the CPU."""
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
    """Join the other ranks, as the environment (RANK, WORLD_SIZE, LOCAL_RANK; torchrun's names) says; who waits longer
    than the timeout for another in a collective gets an error.

    A single process makes no process group. Each rank on a CPU takes its share of the cores, unless OMP_NUM_THREADS
    says how many threads it may have.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():  # a cluster may show each process its own GPU only
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))))
    if world_size == 1:
        yield Ranks(rank=0, world_size=1, device=device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(minutes=timeout_minutes),
        device_id=device if backend == "nccl" else None,
    )
    try:
        control = dist.new_group(backend="gloo", timeout=datetime.timedelta(minutes=timeout_minutes))
        assert isinstance(control, dist.ProcessGroup)  # every rank is a member
        yield Ranks(rank=rank, world_size=world_size, device=device, control=control)
        dist.barrier()  # nobody tears its connections down while another still talks
    finally:
        dist.destroy_process_group()


def synchronised(model: nn.Module) -> nn.Module:
    """The model with BatchNorm statistics over all ranks; its keys and parameters stay.

    Raises:
        InputError: it has a BatchNorm of its own kind, which torch's conversion would make a plain one.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for name, module in model.named_modules():
        if isinstance(module, plain) and type(module) not in plain:
            raise InputError(f"train.sync_bn=true does not know {name}, a {type(module).__name__}; set it to false")
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


class Agreement:
    """The same decision on every rank at the same step, without waiting for the device or the network.

    Each step every rank offers its flags; the maximum over ranks of one step's flags is known at the next step, when
    its reduction on the host has long finished.
    """

    def __init__(self, ranks: Ranks, flags: int) -> None:
        self.ranks = ranks
        self.pending: dist.Work | None = None
        self.shared = torch.zeros(flags, dtype=torch.int32)

    def exchange(self, *flags: bool) -> list[bool]:
        """Offer this step's flags and return what the ranks offered at the previous step (alone: at this one)."""
        if self.ranks.world_size == 1:
            return list(flags)
        decided = self.settle()
        self.shared = torch.tensor(flags, dtype=torch.int32)
        self.pending = dist.all_reduce(self.shared, op=dist.ReduceOp.MAX, group=self.ranks.control, async_op=True)
        return decided

    def settle(self) -> list[bool]:
        """Finish what is under way: the last offer's outcome."""
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        return [bool(flag) for flag in self.shared]


def _floating(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.is_floating_point()]


def average_buffers(ranks: Ranks, *modules: nn.Module) -> None:
    """Replace the floating-point buffers (BatchNorm's running statistics) by their mean over ranks.

    In float64, so that averaging equal float32 buffers changes nothing on any number of ranks.
    """
    buffers = _floating(b for module in modules for b in module.buffers())
    if ranks.world_size == 1 or not buffers:
        return
    flat = ranks.sum(torch.cat([b.flatten().double() for b in buffers])) / ranks.world_size
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
