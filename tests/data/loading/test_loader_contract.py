"""Which samples the loaders give, when, and again: any start, any number of ranks and threads."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from loaders import CPU, EVALUATION, LOADERS, TRAIN, assert_same

from cotnet.config.build import build
from cotnet.errors import InputError
from data.loading.dali import DaliLoader
from data.loading.plan import PADDING

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "plan", [TRAIN, EVALUATION, replace(TRAIN, repeats=3), replace(TRAIN, repeats=3, accumulation=3)]
)
def test_batches_are_what_the_plan_says(loader, plan, train_set, open_loader):
    plan = replace(plan, samples=len(train_set.files))
    found = list(open_loader(loader, train_set, plan).batches(3))
    assert len(found) == plan.batches(3)
    for number, batch in enumerate(found):
        indices = plan.indices(3, number)
        assert batch.images.shape == (plan.rank_batch, 3, 48, 48)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        assert batch.indices.tolist() == indices.tolist()
        assert batch.targets.dtype == torch.int64
        assert batch.targets.tolist() == [0 if i == PADDING else train_set.labels[i % 32] for i in indices]


def many(train_set, samples):
    """A set of so many samples on few files."""
    rows = np.arange(samples) % len(train_set.files)
    files = tuple(train_set.files[row] for row in rows)
    return replace(train_set, files=files, labels=train_set.labels[rows])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_an_epoch_takes_every_sample_once_but_the_remainder(loader, ranks, train_set, open_loader):
    """Over 5 epochs, put together from all ranks, for sizes that divide badly; evaluation leaves nothing out."""
    for samples in (24, 71):
        image_set = many(train_set, samples)
        whole = replace(TRAIN, samples=samples, batch_size=24, image_size=8)
        plans = [replace(whole, rank=rank, world_size=ranks) for rank in range(ranks)]
        opened = [open_loader(loader, image_set, plan, prefetch=1) for plan in plans]
        left_out = set()
        for epoch in range(5):
            shares = zip(*(each.batches(epoch) for each in opened), strict=True)
            taken = torch.stack([torch.cat([share.indices for share in batch]) for batch in shares])
            assert taken.tolist() == [whole.indices(epoch, batch).tolist() for batch in range(samples // 24)]
            assert len(taken.unique()) == taken.numel() == samples - samples % 24
            left_out.add(frozenset(range(samples)) - frozenset(taken.flatten().tolist()))
        assert len(left_out) == (5 if samples % 24 else 1)
    plans = [replace(EVALUATION, batch_size=7, image_size=8, rank=rank, world_size=ranks) for rank in range(ranks)]
    found = [batch.indices for plan in plans for batch in open_loader(loader, image_set, plan, prefetch=1).batches(0)]
    indices = torch.cat(found)
    assert sorted(indices[indices != PADDING].tolist()) == list(range(71))


@pytest.mark.parametrize("loader", LOADERS)
def test_two_seeds_differ_in_order_and_crops(loader, train_set, open_loader):
    def images(seed):
        batches = open_loader(loader, train_set, replace(TRAIN, seed=seed)).batches(0)
        return {int(i): image for batch in batches for i, image in zip(batch.indices, batch.images, strict=True)}

    first, second = images(0), images(1)
    assert list(first) != list(second)
    common = first.keys() & second.keys()
    assert len(common) > 25
    assert not any(torch.equal(first[index], second[index]) for index in common)


@pytest.mark.parametrize("loader", LOADERS)
def test_thread_count_and_prefetch_do_not_show(loader, train_set, open_loader):
    first, second = (
        open_loader(loader, train_set, TRAIN, threads=threads, prefetch=prefetch)
        for threads, prefetch in (((1, 1), (3, 4)) if loader is DaliLoader else ((0, 1), (3, 2)))
    )
    for epoch in (0, 1):
        assert_same(first.batches(epoch), second.batches(epoch))


@pytest.mark.parametrize("loader", LOADERS)
def test_continuing_at_a_batch_gives_the_same_pixels(loader, train_set, open_loader):
    """Also after an epoch that was left half-way, which must leave nothing behind."""
    whole = list(open_loader(loader, train_set, TRAIN).batches(4))
    again = open_loader(loader, train_set, TRAIN, threads=2)
    assert_same(again.batches(4, first=3), whole[3:])
    assert_same(islice(again.batches(4), 2), whole[:2])
    assert_same(again.batches(4, first=1), whole[1:])
    assert list(again.batches(4, first=len(whole))) == []


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("ranks", "first"), [(2, 0), (3, 2)])
def test_any_number_of_ranks_continues_with_the_same_pixels(loader, ranks, first, train_set, open_loader):
    whole = list(open_loader(loader, train_set, TRAIN).batches(1))
    plans = [replace(TRAIN, rank=rank, world_size=ranks) for rank in range(ranks)]
    parts = [list(open_loader(loader, train_set, plan).batches(1, first)) for plan in plans]
    for batch, *shares in zip(whole[first:], *parts, strict=True):
        for field in range(3):
            assert torch.equal(torch.cat([share[field] for share in shares]), batch[field])


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_stay_what_they_were(loader, train_set, open_loader):
    """A batch that is kept is not overwritten by the following ones."""
    batches = open_loader(loader, train_set, TRAIN).batches(0)
    kept = next(batches).images
    pixels = kept.clone()
    for _ in batches:
        pass
    assert torch.equal(kept, pixels)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": -1}, r"^loader\.threads=-1 must be from [01] to 1024$"),
        ({"threads": 2000}, r"^loader\.threads=2000 must be from [01] to 1024$"),
        ({"prefetch": 0}, r"^loader\.prefetch=0 must be from 1 to 1000$"),
        ({"device": "tpu"}, r"^loader\.device=tpu is unknown; did you mean"),
        ({"prefetch": 10**12}, r"^loader\.prefetch=1000000000000 is too large"),
    ],
)
def test_impossible_settings(loader, change, message, train_set):
    node = {"_target_": f"{loader.__module__}.{loader.__name__}", "threads": 1, "prefetch": 1, **change}
    with pytest.raises(InputError, match=message):
        build(node, "loader", image_set=train_set, plan=TRAIN, output_device=CPU, interpolation="bilinear")


def test_where_dali_decodes(train_set, open_loader):
    """Without a GPU `auto` is `cpu`."""
    batches = [open_loader(DaliLoader, train_set, TRAIN, decode=device).batches(1) for device in ("auto", "cpu")]
    assert_same(*batches)


def test_torchvision_does_not_decode_on_a_gpu(train_set):
    node = {"_target_": "data.loading.torchvision.TorchvisionLoader", "threads": 0, "prefetch": 1, "device": "gpu"}
    with pytest.raises(
        InputError, match=r"^loader\.device=gpu is for DALI, torchvision decodes on the CPU; set loader=dali"
    ):
        build(node, "loader", image_set=train_set, plan=TRAIN, output_device=CPU, interpolation="bilinear")
