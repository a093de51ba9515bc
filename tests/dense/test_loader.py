import multiprocessing
from dataclasses import replace
from itertools import compress

import numpy as np
import pytest
import torch
from dense_sets import square, write_ade, write_coco
from PIL import Image, ImageDraw

from cotnet.dense.ade20k import read_ade20k
from cotnet.dense.coco import Objects, read_coco
from cotnet.dense.loader import PHOTOMETRIC, DenseLoader, calm_crop, moved_objects
from cotnet.dense.masks import MaskPart, pasted
from cotnet.dense.plans import DenseEvaluationPlan, DensePlan, View
from cotnet.dense.settings import DenseAugmentation
from cotnet.errors import DataError
from data.prepare.__main__ import main

pytestmark = pytest.mark.slow

MEAN = (0.485, 0.456, 0.406)
GREY = (124, 116, 104)
JITTERED = DenseAugmentation(
    short_sides=(64, 96),
    between=True,
    max_side=160,
    jitter=(0.8, 1.25),
    crop=None,
    crop_max_share=1,
    flip=0.5,
    photometric=True,
    aspect_group=2,
)
WHOLE = replace(JITTERED, short_sides=(40,), between=False, jitter=(1, 1), flip=0, photometric=False, aspect_group=1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "set"
    assert main(["shapes", "--out", str(out), "--images", "14", "--val", "5", "--size", "96"]) == 0
    return out


def loader(image_set, augmentation=JITTERED, *, batch_size=4, rank=0, world_size=1, threads=0):
    sizes = getattr(image_set, "sizes", None)
    shared = {"samples": len(image_set.files), "rank": rank, "world_size": world_size}
    plan = DensePlan(augmentation=augmentation, sizes=sizes, batch_size=batch_size, seed=3, **shared)
    return made(image_set, plan, threads=threads)


def made(image_set, plan, *, threads=0):
    return DenseLoader(image_set, plan, output_device=torch.device("cpu"), mean=MEAN, threads=threads, prefetch=2)


def evaluation_plan(image_set, *, short_side=40, multiple=1):
    shared = {"samples": len(image_set.files), "batch_size": 2, "rank": 0, "world_size": 1}
    return DenseEvaluationPlan(short_side=short_side, max_side=10 * short_side, multiple=multiple, **shared)


def flat(batch):
    """All tensors of a batch, with names."""
    named = [("image", image) for image in batch.images]
    named += [(name, part) for target in batch.targets for name, part in target.items()]
    return [*named, ("indices", batch.indices)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for (name, a), (other_name, b) in zip(flat(one), flat(other), strict=True):
            assert name == other_name and a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("kind", ["coco", "ade"])
def test_workers_ranks_and_continuing_change_nothing(drawn, kind):
    if kind == "coco":
        image_set, given = read_coco(drawn / "coco", "train", masks=True), JITTERED
    else:
        image_set, given = (
            read_ade20k(drawn / "ade", "train", num_classes=6),
            replace(JITTERED, crop=64, crop_max_share=0.75),
        )
    expected = [*loader(image_set, given).batches(1)]
    assert len(expected) == 3
    for threads in (1, 2):
        forked = loader(image_set, given, threads=threads)
        assert_same([*forked.batches(1)], expected)
        assert_same([*forked.batches(1, first=2)], expected[2:])  # the workers of the first epoch
        forked.close()
    assert multiprocessing.active_children() == []
    parts = [[*loader(image_set, given, rank=rank, world_size=2).batches(1)] for rank in range(2)]
    together = [
        type(one)(one[0] + two[0], one[1] + two[1], torch.cat([one[2], two[2]]))
        for one, two in zip(*parts, strict=True)
    ]
    assert_same(together, expected)
    with pytest.raises(AssertionError):
        assert_same([*loader(image_set, given).batches(2)], expected)


def test_three_ranks_put_together_are_one(drawn):
    image_set = read_coco(drawn / "coco", "train", masks=False)
    whole = [*loader(image_set, batch_size=6).batches(0)]
    parts = [[*loader(image_set, batch_size=6, rank=rank, world_size=3).batches(0)] for rank in range(3)]
    for number, expected in enumerate(whole):
        images = [image for part in parts for image in part[number].images]
        assert all(torch.equal(a, b) for a, b in zip(images, expected.images, strict=True))


def test_a_batch_of_detection(drawn):
    image_set = read_coco(drawn / "coco", "train", masks=True)
    for batch in loader(image_set).batches(0):
        assert batch.indices.dtype == torch.int64
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert image.dtype == torch.uint8 and image.shape[0] == 3
            assert {name: part.dtype for name, part in target.items()} == {
                "boxes": torch.float32,
                "labels": torch.int64,
                "masks": torch.uint8,
            }
            assert target["masks"].shape == (len(target["labels"]), *image.shape[1:])
            boxes, (height, width) = target["boxes"], image.shape[1:]
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all() and (boxes >= 0).all()
            assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert "masks" not in next(loader(read_coco(drawn / "coco", "train", masks=False)).batches(0)).targets[0]


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


def masks_of(moved, view):
    return pasted(moved["mask_pixels"], moved["mask_places"].tolist(), view.output).numpy()


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
            for row, box, mask in zip(rows.tolist(), truth.boxes[keep], compress(truth.masks, keep), strict=True):
                one = Objects(box[None], np.array([1]), np.array([False]), [mask])
                moved = moved_objects(one, view, size=size)
                points = annotations.points[
                    annotations.ends[annotations.polygons[row]] : annotations.ends[annotations.polygons[row] + 1]
                ]
                expected = analytic(np.array(points).reshape(-1, 2), view, size=size)
                if min(expected.sum(), mask.pixels.sum()) < 2500:  # COCO's rule alone moves edges by half a pixel
                    continue
                found = masks_of(moved, view)[0] > 0
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
    square, wide, nothing = (np.ones(shape, np.uint8) for shape in ((10, 10), (10, 12), (0, 0)))
    masks = [MaskPart(5, 5, square), MaskPart(20, 30, square), MaskPart(5, 9, wide), MaskPart(0, 0, nothing)]
    boxes = np.array([[5, 5, 15, 15], [30, 20, 40, 30], [9.4, 5, 20.6, 15], [5, 5, 15, 15]], np.float32)
    truth = Objects(boxes, np.array([1, 2, 3, 4]), np.zeros(4, bool), masks)
    view = View(size=(40, 60), flip=False, offsets=((0, 20),), output=(40, 40), photometric=())
    found = moved_objects(truth, view, size=(40, 60))
    assert found["labels"].tolist() == [2]  # the third has 0.6 pixels left
    assert found["boxes"].tolist() == [[10, 20, 20, 30]]
    masks = masks_of(found, view)
    assert masks.shape == (1, 40, 40) and box_of(masks[0]).tolist() == [10, 20, 20, 30]
    nothing = moved_objects(truth, view._replace(output=(4, 4)), size=(40, 60))
    assert [tuple(part.shape) for part in nothing.values()] == [(0, 4), (0,), (0,), (0, 4)]


def test_evaluation_keeps_empty_images_and_says_the_files_size(drawn):
    image_set = read_coco(drawn / "coco", "val", masks=True)
    batches = [*made(image_set, evaluation_plan(image_set)).batches(0)]
    assert torch.cat([batch.indices for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    for batch in batches:
        for image, target, index in zip(batch.images, batch.targets, batch.indices.tolist(), strict=True):
            assert list(target) == ["size"] and target["size"].tolist() == image_set.sizes[index].tolist()
            assert min(image.shape[1:]) == 40


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
            assert target["size"].tolist() == list(target["classes"].shape)
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
    source = loader(image_set, replace(WHOLE, photometric=True, crop=64), batch_size=1)
    plain = torch.from_numpy(np.array(Image.open(image_set.root / "11.png"))).permute(2, 0, 1)
    changed = set()
    for epoch in range(12):
        image = next(source.batches(epoch)).images[0]
        expected = plain
        changes = source._plan.view(epoch, 0, (40, 60)).photometric
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


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "I;16", "RGBA"])
def test_other_modes_are_converted_as_the_classification_loader_does(tmp_path, mode):
    write_coco(tmp_path, [square(11, 3, 4)], sizes=[(40, 60)])
    image_set = read_coco(tmp_path, "train", masks=False)
    path = image_set.root / "11.png"
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"))
        other = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    other.save(path, format="TIFF" if mode == "CMYK" else "PNG")
    found = next(loader(image_set, WHOLE, batch_size=1).batches(0)).images[0]
    expected = grey if mode == "I;16" else np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(found, np.broadcast_to(expected, found.shape))


def test_exif_orientation_is_ignored(tmp_path):
    write_coco(tmp_path, [square(11, 3, 4)], sizes=[(40, 60)])
    image_set = read_coco(tmp_path, "train", masks=False)
    path = image_set.root / "11.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    assert next(loader(image_set, WHOLE, batch_size=1).batches(0)).images[0].shape == (3, 40, 60)


@pytest.mark.parametrize("threads", [0, 1])
def test_a_damaged_file_is_one_line(tmp_path, threads):
    write_coco(tmp_path, [square(11, 3, 4)], sizes=[(40, 60)])
    image_set = read_coco(tmp_path, "train", masks=True)
    path = image_set.root / "11.png"

    def line():
        source = loader(image_set, WHOLE, batch_size=1, threads=threads)
        with pytest.raises(DataError) as raised:
            next(source.batches(0))
        source.close()
        return str(raised.value).replace(str(path), "PATH")

    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = line()
    assert found.startswith("PATH: damaged image (") and "\n" not in found
    if threads:  # the rest is the same
        return
    path.write_bytes(b"")
    assert line() == "PATH: damaged image (not an image); copy it again"
    Image.new("RGB", (50, 40)).save(path)
    assert line() == "PATH: the image is 40x50 (height x width), but 40x60 in its truth; copy both again"
    path.unlink()
    assert line() == "PATH: the image has vanished; restore it or read the set anew"


def test_a_map_of_another_size_is_one_line(tmp_path):
    images, _ = write_ade(tmp_path, [np.ones((40, 60), np.uint8)])
    image_set = read_ade20k(tmp_path, "train", num_classes=2)
    Image.new("RGB", (60, 41)).save(images / "ADE_0.jpg")
    with pytest.raises(DataError, match=r"ADE_0.jpg: the image is 41x60 \(height x width\), but 40x60 in its truth"):
        next(loader(image_set, WHOLE, batch_size=1).batches(0))
