"""What the loader does to an image, its objects and its label map under a view of the plan."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_loaders import GREY, JITTERED, WHOLE, evaluation_plan, loader, made, training_plan
from dense_sets import square, write_coco
from PIL import Image, ImageDraw

from cotnet.dense.ade20k import read_ade20k
from cotnet.dense.coco import Objects, read_coco
from cotnet.dense.loader import PHOTOMETRIC, calm_crop, moved_objects
from cotnet.dense.plans import DensePlan, View
from data.prepare.__main__ import main

pytestmark = pytest.mark.slow


def box_of(mask):
    rows, columns = np.nonzero(np.asarray(mask))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def overlap(a, b):
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)


def analytic(corners, view, *, size):
    """(h, w) bool of a polygon drawn where the view puts it: its corners are moved, not its pixels."""
    points = np.array(corners) * [view.size[1] / size[1], view.size[0] / size[0]]
    if view.flip:
        points[:, 0] = view.size[1] - points[:, 0]
    points -= view.offsets[0][::-1]
    finer = Image.new("1", (4 * view.output[1], 4 * view.output[0]))
    ImageDraw.Draw(finer).polygon([tuple(point) for point in 4 * points - 0.5], fill=1)
    inside = np.asarray(finer).reshape(view.output[0], 4, view.output[1], 4).mean(axis=(1, 3)) >= 0.5
    reach = view.size[0] - view.offsets[0][0], view.size[1] - view.offsets[0][1]
    inside[reach[0] :] = inside[:, reach[1] :] = False
    return inside


def test_boxes_and_masks_follow_resize_flip_and_crop(tmp_path):
    out = tmp_path / "set"
    assert main(["shapes", "--out", str(out), "--images", "1", "--val", "7", "--size", "320"]) == 0
    image_set = read_coco(out / "coco", "val", masks=True)
    annotations = image_set.source
    given = replace(JITTERED, short_sides=(200, 260), jitter=(0.8, 1.3), crop=220, max_side=500)
    plan = DensePlan(augmentation=given, samples=7, sizes=None, batch_size=1, rank=0, world_size=1, seed=1)
    compared = boxes = flips = padded = cut = 0
    for epoch in range(6):
        for index in range(7):
            size = tuple(image_set.sizes[index].tolist())
            view, truth = plan.view(epoch, index, size), image_set.truth(index)
            rows = image_set.rows[image_set.first[index] : image_set.first[index + 1]]
            rows, keep = rows[~truth.crowd], ~truth.crowd
            for row, box, mask in zip(rows.tolist(), truth.boxes[keep], truth.masks[keep], strict=True):
                one = Objects(box[None], np.array([1]), np.array([False]), mask[None])
                moved = moved_objects(one, view, size=size)
                points = annotations.points[
                    annotations.ends[annotations.polygons[row]] : annotations.ends[annotations.polygons[row] + 1]
                ]
                expected = analytic(np.array(points).reshape(-1, 2), view, size=size)
                if min(expected.sum(), mask.sum()) < 2500:  # COCO's rule alone moves edges by half a pixel
                    continue
                found = moved["masks"][0].numpy() > 0
                assert (found & expected).sum() / (found | expected).sum() > 0.95
                inside = box_of(found).min() > 0 and box_of(found).max() < 220
                if inside or annotations.categories[row] == 1:  # a triangle's rest may be smaller than its box's
                    assert overlap(moved["boxes"][0].numpy(), box_of(found)) > 0.9
                    boxes += 1
                compared, flips, padded = compared + 1, flips + view.flip, padded + (min(view.size) < 220)
                cut += box_of(found).max() == 220
    assert compared > 40 and boxes > 25 and min(flips, padded, cut) >= 5


def test_pixels_of_a_view_by_hand(tmp_path):
    write_coco(tmp_path, [square(11, 3, 4)], sizes=[(40, 60)])
    image_set = read_coco(tmp_path, "train", masks=True)
    pixels = np.asarray(Image.open(image_set.root / "11.png"))

    def run(**changes):
        plan = loader(image_set, replace(WHOLE, **changes), batch_size=1)
        batch = next(plan.batches(0))
        return batch.images[0].permute(1, 2, 0).numpy(), batch.targets[0]

    image, target = run()
    assert np.array_equal(image, pixels)
    assert target["boxes"].tolist() == [[3, 4, 13, 14]] and target["labels"].tolist() == [2]
    assert box_of(target["masks"][0]).tolist() == [3, 4, 13, 14]
    image, target = run(flip=1)
    assert np.array_equal(image, pixels[:, ::-1])
    assert target["boxes"].tolist() == [[47, 4, 57, 14]]
    assert box_of(target["masks"][0]).tolist() == [47, 4, 57, 14]
    image, target = run(crop=64)
    assert np.array_equal(image[:40, :60], pixels) and image.shape == (64, 64, 3)
    assert np.array_equal(
        np.unique(np.concatenate([image[40:].reshape(-1, 3), image[:, 60:].reshape(-1, 3)]), axis=0), [GREY]
    )
    assert target["masks"].shape == (1, 64, 64) and target["masks"].sum() == 100
    image, target = run(short_sides=(80,))
    expected = Image.fromarray(pixels).resize((120, 80), Image.Resampling.BILINEAR)
    assert np.abs(image.astype(int) - np.asarray(expected)).max() <= 1
    assert target["boxes"].tolist() == [[6, 8, 26, 28]] and box_of(target["masks"][0]).tolist() == [6, 8, 26, 28]


def test_objects_that_a_crop_leaves_out_vanish():
    masks = np.zeros((4, 40, 60), np.uint8)
    masks[0, 5:15, 5:15] = masks[1, 20:30, 30:40] = masks[2, 5:15, 9:21] = 1
    boxes = np.array([[5, 5, 15, 15], [30, 20, 40, 30], [9.4, 5, 20.6, 15], [5, 5, 15, 15]], np.float32)
    truth = Objects(boxes, np.array([1, 2, 3, 4]), np.zeros(4, bool), masks)
    view = View(size=(40, 60), flip=False, offsets=((0, 20),), output=(40, 40), photometric=())
    found = moved_objects(truth, view, size=(40, 60))
    assert found["labels"].tolist() == [2]  # the third has 0.6 pixels left
    assert found["boxes"].tolist() == [[10, 20, 20, 30]]
    assert found["masks"].shape == (1, 40, 40) and box_of(found["masks"][0]).tolist() == [10, 20, 20, 30]
    nothing = moved_objects(truth, view._replace(output=(4, 4)), size=(40, 60))
    assert [tuple(part.shape) for part in nothing.values()] == [(0, 4), (0,), (0, 4, 4)]


def nearest(count, source):
    """The source pixel under the middle of each of `count` pixels."""
    return ((np.arange(count) + 0.5) * source // count).astype(int)


def test_label_maps(drawn):
    image_set = read_ade20k(drawn / "ade", "val", num_classes=6)
    for batch in made(image_set, evaluation_plan(image_set, short_side=50, multiple=32)).batches(0):
        for image, target, index in zip(batch.images, batch.targets, batch.indices.tolist(), strict=True):
            assert image.shape[1] % 32 == image.shape[2] % 32 == 0
            assert target["classes"].dtype == torch.int64
            assert np.array_equal(target["classes"], image_set.classes(index))
    given = replace(WHOLE, short_sides=(96,), crop=128, flip=1)
    for batch in loader(image_set, given, batch_size=2).batches(0):
        for image, target, index in zip(batch.images, batch.targets, batch.indices.tolist(), strict=True):
            assert image.shape == (3, 128, 128) and target["classes"].shape == (128, 128)
            original = image_set.classes(index)
            padded = (image == torch.tensor(GREY, dtype=torch.uint8)[:, None, None]).all(dim=0)
            rows, columns = ((~padded).any(dim=side).sum().item() for side in (1, 0))
            assert (target["classes"][rows:] == 255).all() and (target["classes"][:, columns:] == 255).all()
            places = [nearest(rows, original.shape[0]), nearest(columns, original.shape[1])]
            assert np.array_equal(target["classes"][:rows, :columns], original[np.ix_(*places)][:, ::-1])


def test_a_calm_crop_is_the_first_that_serves_or_the_last():
    classes = np.zeros((20, 40), np.uint8)
    classes[:, 10:20], classes[:, 30:] = 1, 255
    offsets = ((0, 0), (0, 12), (0, 5), (0, 4), (0, 25))
    view = View(size=(20, 40), flip=False, offsets=offsets, output=(20, 10), photometric=())
    for share, (top, left) in ((0.75, (0, 5)), (0.8, (0, 12)), (0.4, (0, 25))):
        chosen, part = calm_crop(classes, view, share=share)
        assert chosen.offsets == ((top, left),)
        assert np.array_equal(part, classes[top : top + 20, left : left + 10])
    assert calm_crop(classes, view._replace(offsets=offsets[:1]), share=0.75)[0].offsets == ((0, 0),)
    _, part = calm_crop(classes, view._replace(flip=True, offsets=((0, 0),), output=(24, 44)), share=1)
    assert np.array_equal(part, np.pad(classes[:, ::-1], ((0, 4), (0, 4)), constant_values=255))


def test_photometric_changes_in_the_plans_order(tmp_path):
    write_coco(tmp_path, [square(11, 3, 4)], sizes=[(40, 60)])
    image_set = read_coco(tmp_path, "train", masks=False)
    plan = training_plan(image_set, replace(WHOLE, photometric=True, crop=64), batch_size=1)
    source = made(image_set, plan)
    plain = torch.from_numpy(np.array(Image.open(image_set.root / "11.png"))).permute(2, 0, 1)
    changed = set()
    for epoch in range(12):
        image = next(source.batches(epoch)).images[0]
        expected = plain
        changes = plan.view(epoch, 0, (40, 60)).photometric
        for name, factor in changes:
            expected = PHOTOMETRIC[name](expected, factor)
            changed.add(name)
        assert torch.equal(image[:, :40, :60], expected) and torch.equal(
            image[:, 50, 63], torch.tensor(GREY, dtype=torch.uint8)
        )
        assert torch.equal(expected, plain) == (changes == ())
    assert changed == set(PHOTOMETRIC)
    grey = torch.tensor([10, 100, 250], dtype=torch.uint8).expand(3, 1, 3)
    assert PHOTOMETRIC["brightness"](grey, -20.4)[0].tolist() == [[0, 80, 230]]
    assert PHOTOMETRIC["contrast"](grey, 1.5)[0].tolist() == [[15, 150, 255]]
