from dataclasses import replace

import pytest
import torch
from loaders import TRAIN
from photographs import make_imagenet

from cotnet.errors import DataError
from data.loading.dali import DaliLoader
from data.loading.progressive import ProgressiveLoader, ramp
from data.loading.torchvision import TorchvisionLoader
from data.sets.read import read_split


def test_ramp():
    sizes = [ramp(epoch, start=160, end=192, begin=4, until=8) for epoch in range(10)]
    assert sizes == [160, 160, 160, 160, 160, 160, 192, 192, 192, 192]  # halfway, 5.5 x 32: half to even
    assert [ramp(epoch, start=16, end=24, begin=0, until=4, multiple=2) for epoch in range(6)] == [
        16,
        18,
        20,
        22,
        24,
        24,
    ]
    with pytest.raises(DataError, match="image size 192 to 160"):
        ramp(0, start=192, end=160, begin=0, until=4)


@pytest.mark.parametrize("kind", [DaliLoader, TorchvisionLoader])
def test_each_epoch_has_its_size_and_the_pixels_of_a_loader_of_that_size(kind, tmp_path):
    found = read_split(make_imagenet(tmp_path, classes=2, train=6, val=1), "train")
    plan = replace(TRAIN, samples=12, batch_size=4, image_size=32)

    def make(size):
        sized = replace(plan, image_size=size)
        given = {"interpolation": "bilinear", "threads": int(kind is DaliLoader), "prefetch": 1}
        return kind(found, sized, output_device=torch.device("cpu"), **given)

    growing = ProgressiveLoader(make, lambda epoch: 16 + 8 * (epoch // 2))
    for epoch, first in ((0, 0), (1, 1), (2, 0), (3, 2)):
        single = make(16 + 8 * (epoch // 2))
        for batch, expected in zip(growing.batches(epoch, first), single.batches(epoch, first), strict=True):
            assert batch.images.shape[-1] == (16, 16, 24, 24)[epoch]
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.indices, expected.indices)
        single.close()
    growing.close()
