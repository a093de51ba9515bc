"""The detection benchmark: both sides do the same work on the same model, and what it prints follows from its times."""

import json

import pytest
import torch

from cotnet.benchmarks import dense
from cotnet.benchmarks.common import EpochFigures
from cotnet.benchmarks.dense_reference import Reference, ReferenceBatches, ReferenceImages

SIDES = (128, 213)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    root = tmp_path_factory.mktemp("annotated") / "coco"
    dense.make_annotated(root, 4)
    return root


@pytest.fixture(scope="module")
def sides(annotated, tmp_path_factory):
    """Ours and theirs, with the same weights; few boxes for the second stage, which saves time."""
    case = dense.DenseCase("mask_rcnn", 2, 0, SIDES, 1)
    images = ReferenceImages(annotated, masks=True)
    ours = dense.OurDetector(annotated, case, classes=len(images.labels), folder=tmp_path_factory.mktemp("run"))
    theirs = Reference(images, "mask_rcnn", batch=2, workers=0, sides=SIDES, lr=dense.LR)
    theirs.model.load_state_dict(ours.model.state_dict())
    dense.pool_alike(ours, theirs)
    for side in (ours, theirs):
        side.model.roi_heads.fg_bg_sampler.batch_size_per_image = 8
        side.model.roi_heads.register_forward_pre_hook(dense.add_near_boxes)
    yield ours, theirs
    ours.loader.close()


def objects(side):
    """Of each image, told by its labels: boxes, mask areas and the mean of the normalised image, unmirrored."""
    found = {}
    for images, targets, *_ in side.read():
        batch, moved = side.model.transform(images, targets)
        for image, size, target in zip(batch.tensors, batch.image_sizes, moved, strict=True):
            middles = (target["boxes"][:, 1::2].mean(1), target["boxes"][:, 2] - target["boxes"][:, 0])
            areas = target["masks"].flatten(1).sum(1).float()
            mean = image[:, : size[0], : size[1]].mean((1, 2))
            found[tuple(target["labels"].tolist())] = (*middles, areas, mean, torch.tensor([*size]))
    return found


@pytest.mark.slow
def test_both_give_the_model_the_same_batches(sides):
    ours, theirs = map(objects, sides)
    assert len(ours) == 4 and ours.keys() == theirs.keys()
    for labels, (heights, widths, areas, mean, size) in ours.items():
        peer = theirs[labels]
        torch.testing.assert_close(heights, peer[0], rtol=0, atol=0.7)  # theirs rounds sides down, ours to the nearest
        torch.testing.assert_close(widths, peer[1], rtol=0, atol=0.7)
        torch.testing.assert_close(areas, peer[2], rtol=0.15, atol=12)
        torch.testing.assert_close(mean, peer[3], rtol=0, atol=0.03)
        torch.testing.assert_close(size, peer[4], rtol=0, atol=1)


@pytest.mark.slow
def test_a_turn_takes_its_steps_and_both_have_one_model(sides):
    ours, theirs = sides
    parameters = [sum(each.numel() for each in side.model.parameters() if each.requires_grad) for side in sides]
    assert parameters[0] == parameters[1]
    maps = {str(level): torch.randn(1, 4, 64 >> level, 64 >> level) for level in range(4)}
    boxes = [torch.tensor([[10.0, 20.0, 90.0, 120.0], [0.0, 0.0, 250.0, 200.0]])]
    for pool in ("box_roi_pool", "mask_roi_pool"):
        pooled = [getattr(side.model.roi_heads, pool)(maps, boxes, [(256, 256)]) for side in sides]
        assert torch.equal(*pooled) and pooled[0].std() > 0
    counts = []  # of boxes in the mask heads: a quarter of the 8 of each image
    for side in sides:
        side.model.roi_heads.mask_head.register_forward_hook(lambda _head, given, _: counts.append(len(given[0])))
    before = ours.model.state_dict()["backbone.body.conv1.weight"].clone()
    assert ours.train(1) == 2 and ours.state.step == 1
    assert dense.their_training(theirs, 1) == 2
    assert counts == [4, 4]
    for side in sides:
        assert not torch.equal(side.model.state_dict()["backbone.body.conv1.weight"], before)


def test_groups_have_one_aspect_and_epochs_a_limit(annotated):
    images = ReferenceImages(annotated, masks=False)
    batches = ReferenceBatches(images, 1)
    batches.groups, batches.batch_size = [0, 1, 0, 1, 0, 1, 1], 2
    for batch in (found := [*batches]):
        assert len({batches.groups[index] for index in batch}) == 1
    assert len(found) == 3 and len({index for batch in found for index in batch}) == 6
    batches.limit = 2
    assert len([*batches]) == 2


def test_ratios_are_medians_of_rounds():
    ours = [EpochFigures(30, 2), EpochFigures(20, 2), EpochFigures(50, 3)]
    theirs = [EpochFigures(10, 4), EpochFigures(20, 4), EpochFigures(25, 9)]
    record = dense.dense_record("input", "mask_rcnn", ours, theirs)
    assert (record["images_per_second"], record["peer_images_per_second"]) == (30, 20)
    assert (record["ratio"], record["cpu_ratio"], record["target"]) == (2, 2, 1)


@pytest.mark.slow
@pytest.mark.long
def test_records_and_file(tmp_path):
    small = ["--images", "4", "--rounds", "1", "--steps", "1", "--workers", "1", "--short-side", "64", "--batch", "1"]
    dense.main([*small, "--heads", "faster_rcnn", "--json", str(tmp_path / "dense.json")])
    records = json.loads((tmp_path / "dense.json").read_text())["records"]
    assert [record["name"] for record in records] == ["dense/loader", "dense/input", "dense/train"]
    assert all(record["ratio"] > 0 and record["head"] == "faster_rcnn" for record in records)
    assert records[2]["memory_ratio"] == records[2]["peer_peak_mib"] / records[2]["peak_mib"]
