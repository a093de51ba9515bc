"""Published models' own preprocessing, as their libraries do it."""

from pathlib import Path

import pytest
import torch
from torchvision.models import get_model_weights
from torchvision.transforms.v2 import functional

from cotnet.errors import InputError
from cotnet.evaluation.preprocessing import own_preprocessing
from data.loading.plan import central_geometry


@pytest.mark.parametrize(
    ("name", "file", "version"),
    [
        ("resnet50", "resnet50-0676ba61.pth", "IMAGENET1K_V1"),
        ("resnet50", "resnet50-11ad3fa6.pth", "IMAGENET1K_V2"),
        ("resnet50", "other.pth", "IMAGENET1K_V1"),
        ("swin_t", "swin_t-704ceda3.pth", "IMAGENET1K_V1"),
        ("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth", "IMAGENET1K_V1"),
        ("inception_v3", "inception_v3_google-0cc3c7bd.pth", "IMAGENET1K_V1"),
    ],
)
def test_torchvision_by_the_name_of_the_file(name, file, version):
    """Size after resizing, crop, filter, mean and deviation are the preset's."""
    preset = get_model_weights(name)[version].transforms()
    found = own_preprocessing("torchvision_model", name, Path(file))
    assert [found["eval_size"]] == preset.crop_size
    assert [int(found["eval_size"] / found["crop_ratio"])] == preset.resize_size
    assert (found["eval_interpolation"], found["mean"], found["std"]) == (
        preset.interpolation.value,
        list(preset.mean),
        list(preset.std),
    )
    image = torch.zeros(3, 400, 500, dtype=torch.uint8)
    height, width = functional.resize(image, preset.resize_size).shape[1:]
    geometry = central_geometry(torch.tensor([[400, 500]]).numpy(), found["eval_size"], crop_ratio=found["crop_ratio"])
    assert geometry.size[0].tolist() == [height, width]


def test_timm():
    found = own_preprocessing("timm_model", "vit_base_patch16_224", Path("x"))
    assert (found["eval_size"], found["crop_ratio"], found["mean"]) == (224, 0.9, [0.5, 0.5, 0.5])
    with pytest.raises(InputError, match=r"timm knows no preprocessing of test_nothing; set data\.preprocessing"):
        own_preprocessing("timm_model", "test_nothing", Path("x"))
