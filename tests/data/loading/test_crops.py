import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from data.loading.crops import central_geometry, random_crop_boxes
from data.loading.random import Stream, uniforms


@pytest.mark.parametrize(("image_size", "crop_ratio"), [(32, 0.875), (224, 0.875), (224, 0.95), (33, 1.0), (64, 0.9)])
def test_central_geometry_is_torchvisions(image_size, crop_ratio):
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(1, 700, (40, 2)), [[375, 500], [500, 375], [32, 32], [37, 36], [1, 3]]])
    sizes = sizes[sizes.max(1) < 12 * sizes.min(1)]
    geometry = central_geometry(sizes, image_size, crop_ratio=crop_ratio)
    for row, (height, width) in enumerate(sizes.tolist()):
        resized = v2.functional.resize(torch.zeros(1, height, width), int(image_size / crop_ratio), antialias=True)
        assert tuple(geometry.size[row]) == resized.shape[1:]
        places = torch.stack(torch.meshgrid(*map(torch.arange, resized.shape[1:]), indexing="ij"))
        cropped = v2.functional.center_crop(places, [image_size, image_size])
        assert geometry.offset[row].tolist() == cropped[:, 0, 0].tolist()
        assert geometry.box[row].tolist() == [0, 0, height, width]
    assert not geometry.flip.any()


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (77, 200), (200, 77), (1, 1)])
def test_box_where_no_candidate_fits_is_torchvisions(size):
    ratio = (1.0, 1.0) if size == (1, 1) else (3 / 4, 4 / 3)
    uniform = uniforms(0, 0, Stream.CROP, np.arange(1), 22)
    box = random_crop_boxes(np.array([size]), (1.0, 1.0), ratio=ratio, uniform=uniform)[0]
    expected = v2.RandomResizedCrop(8, scale=(1, 1), ratio=ratio).make_params([torch.zeros(1, *size)])
    assert box.tolist() == [expected[key] for key in ("top", "left", "height", "width")]
