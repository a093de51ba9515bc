"""FSDP2 shards stages: two real ranks give the logits and gradients of the whole network."""

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cotnet import models


def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    whole, sharded = (made() for _ in range(2))
    mesh = init_device_mesh("cpu", (2,))
    for stage in (sharded.layer1, sharded.layer2, sharded.layer3, sharded.layer4, sharded):
        fully_shard(stage, mesh=mesh)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits, expected = sharded(images), whole(images)
    assert torch.equal(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for (key, one), other in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        assert one.numel() == 0 or one.to_local().numel() < one.numel(), f"{key} is not sharded"
        assert torch.equal(one.grad.full_tensor(), other.grad), key
    dist.destroy_process_group()


def made():
    torch.manual_seed(0)
    return models.cotnet_small(width=8, num_classes=5).eval()


@pytest.mark.slow
@pytest.mark.long
def test_stages_are_sharded(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path / "store"),), nprocs=2)
