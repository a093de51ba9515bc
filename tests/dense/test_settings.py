"""What a dense configuration refuses, and how it says so."""

import pytest

from cotnet import dense_parts, parts
from cotnet.config.compose import compose
from cotnet.errors import InputError

DETECTION, SEGMENTATION = ("task=detection", "data.root=x"), ("task=segmentation", "data.root=x")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            [*DETECTION, "data=digits"],
            "data: this image set is for classification; task=detection wants data=coco or shapes",
        ),
        ([*DETECTION, "loader=dali"], "loader: this one is for classification; set loader=dense"),
        (
            [*DETECTION, "augmentation=cotnet"],
            "augmentation: this one is for classification; set augmentation=detection",
        ),
        ([*DETECTION, "task.head=mask_rcn"], "task.head=mask_rcn is unknown; did you mean mask_rcnn"),
        ([*DETECTION, "task.freeze=7"], "task.freeze=7"),
        ([*DETECTION, "task.weights=nowhere.pth"], "task.weights=nowhere.pth does not exist; give the path"),
        ([*DETECTION, "train.compile=true"], "train.compile=True: detectors and segmenters are not compiled"),
        ([*DETECTION, "augmentation.aspect_group=3"], "augmentation.aspect_group=3 must divide train.batch_size=16"),
        ([*DETECTION, "evaluation.extra={v2: 1}"], "evaluation.extra is for classifiers; set it to null"),
        ([*SEGMENTATION, "augmentation.crop=null"], "augmentation.crop=null: segmentation trains on squares"),
        ([*SEGMENTATION, "task.rois=4"], "task.rois is not a setting"),
        (["task=detection", "data.root=nowhere"], "data.root: nowhere/annotations/instances_train2017.json"),
        (["task=segmentation", "data.root=nowhere"], "data.root: nowhere/ADEChallengeData2016"),
    ],
)
def test_one_clear_line(overrides, line):
    with pytest.raises(InputError) as error:
        given = [one for one in overrides if not one.startswith("task.rois")]
        config = compose("train", given)
        config["task"] |= {"rois": 4} if len(given) < len(overrides) else {}
        dense_parts.read_splits(dense_parts.settings_of(config))
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data=coco"], "data: this image set is not for classification; add task=detection or task=segmentation"),
        (["loader=dense"], "loader=dense is for task=detection and task=segmentation; set loader=dali or torchvision"),
    ],
)
def test_a_classifier_refuses_what_is_dense(overrides, line):
    with pytest.raises(InputError, match=line):
        parts.settings_of(compose("train", ["data.root=x", *overrides]))


@pytest.mark.parametrize(
    ("backbone", "line"),
    [
        (["backbone=timm", "backbone.model_name=vit_tiny_patch16_224"], "has no feature pyramid"),
        (["backbone=cotnet_small", "task.anchor_sizes=[8,16]"], "task.anchor_sizes has 2 sizes, but the pyramid has 5"),
    ],
)
def test_a_network_that_cannot_be(backbone, line):
    config = compose("train", [*DETECTION, *backbone])
    with pytest.raises(InputError, match=line):
        dense_parts.build_model(config, dense_parts.settings_of(config))
