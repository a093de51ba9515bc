"""The evaluation of stand-ins for a detector and a segmenter that know the truth, nearly."""

import json
import os
from functools import partial
from operator import eq
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools import mask

from cotnet.dense.evaluation import coco_results, evaluate_detector, evaluate_segmenter, pasted
from cotnet.dense.metrics import box_and_mask_figures
from cotnet.engine.distributed import Ranks, join_ranks
from cotnet.engine.evaluation import Interrupted
from cotnet.engine.launch import launch
from cotnet.engine.precision import Precision

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, device=CPU)
IMAGES, BATCH, CATEGORIES = 11, 2, (3, 8, 20)
HALF = 2  # the model sees images of half the height and width


class FewBatches(NamedTuple):
    images: list
    targets: list
    indices: torch.Tensor


def truth():
    """Eleven images of several sizes with up to four objects of three categories; one image has none."""
    random = np.random.default_rng(1)
    images, annotations = [], []
    for number in range(IMAGES):
        height, width = (int(side) * 2 for side in random.integers(30, 60, 2))
        images.append({"id": 100 - number, "height": height, "width": width, "file_name": f"{number}.png"})
        for _ in range(0 if number == 4 else random.integers(1, 5)):
            w, h = random.integers(8, 30, 2).tolist()
            box = [int(random.integers(0, width - w)), int(random.integers(0, height - h)), w, h]
            shape = [[box[0], box[1], box[0] + w, box[1], box[0] + w, box[1] + h, box[0], box[1] + h]]
            given = {"image_id": 100 - number, "category_id": int(random.choice(CATEGORIES)), "bbox": box}
            annotations.append({"id": len(annotations) + 1, **given, "area": w * h, "segmentation": shape})
    for one in annotations:
        one["iscrowd"] = 0
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": a, "name": f"c{a}"} for a in CATEGORIES],
    }


def image_set():
    content = truth()
    return SimpleNamespace(
        annotations=content,
        sizes=torch.tensor([[one["height"], one["width"]] for one in content["images"]]),
        image_ids=[one["id"] for one in content["images"]],
        category_ids=CATEGORIES,
    )


class Numbered:
    """Batches of images whose pixels all hold the image's number, every `world_size`-th batch on this rank."""

    def __init__(self, ranks, batches=None):
        self.ranks, self.sizes = ranks, image_set().sizes // HALF
        self.given = batches or [list(range(a, min(a + BATCH, IMAGES))) for a in range(0, IMAGES, BATCH)]

    def batches(self, epoch, first=0):
        for numbers in self.given[self.ranks.rank :: self.ranks.world_size]:
            images = [torch.full((3, *self.sizes[one].tolist()), one, dtype=torch.uint8) for one in numbers]
            yield FewBatches(images, [{"classes": classes_of(one)} for one in numbers], torch.tensor(numbers))


def classes_of(number):
    """The label map of an image at its file's size."""
    random = torch.Generator().manual_seed(number)
    height, width = image_set().sizes[number].tolist()
    coarse = torch.randint(0, 4, (height // 6 + 1, width // 6 + 1), generator=random)
    labels = coarse.repeat_interleave(6, 0).repeat_interleave(6, 1)[:height, :width].clone()
    labels[labels == 3] = 255
    return labels


class NearlyRight(torch.nn.Module):
    """Detections near the truth in pixels of the image given, and a false alarm in each image."""

    def __init__(self, noise=1.0):
        super().__init__()
        self.noise, self.content = noise, truth()

    def forward(self, images):
        assert not self.training
        return [self.detections(int(image[0, 0, 0])) for image in images]

    def detections(self, number):
        random = torch.Generator().manual_seed(number)
        here = [one for one in self.content["annotations"] if one["image_id"] == 100 - number]
        given = [*[one["bbox"] for one in here], *([[0, 0, 20, 20]] if self.noise else [])]
        boxes = torch.tensor(given).view(-1, 4).float() / HALF
        boxes[:, 2:] += boxes[:, :2]
        boxes += self.noise * torch.randn(boxes.shape, generator=random)
        labels = [CATEGORIES.index(one["category_id"]) + 1 for one in here] + ([1] if self.noise else [])
        scores = torch.rand(len(boxes), generator=random).sort(descending=True).values
        return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "scores": scores,
                "masks": torch.ones(len(boxes), 28, 28)}  # fmt: skip


class Segmenter(torch.nn.Module):
    """Logits at half the file's size, right for most pixels."""

    def forward(self, images):
        assert not self.training
        return [{"logits": self.logits(int(image[0, 0, 0]))} for image in images]

    def logits(self, number):
        labels = classes_of(number)[::HALF, ::HALF] % 255
        noise = torch.randn(3, *labels.shape, generator=torch.Generator().manual_seed(number))
        return 2 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 0) + noise


def how(ranks, **changes):
    given = {"precision": Precision(name="fp32", device=CPU), "ranks": ranks, "stop": lambda: False}
    return {**given, "advance": lambda images: None, **changes}


def evaluated(ranks):
    """Everything that must not depend on the number of ranks; the results are on rank 0 only."""
    models = {"raw": NearlyRight(), "ema": NearlyRight(0.4)}
    boxes = evaluate_detector(models, Numbered(ranks), image_set(), masks=True, **how(ranks))
    pixels = evaluate_segmenter({"raw": Segmenter()}, Numbered(ranks), list("abc"), samples=IMAGES, **how(ranks))
    figures = {name: one.figures for name, one in (boxes | {"pixels": pixels["raw"]}).items()}
    return [figures, pixels["raw"].found.tolist()], {name: one.found for name, one in boxes.items()}


def on_fewer_and_fewer(folder, store):
    """A rank of three: evaluates with three, two and one."""
    rank = int(os.environ["RANK"])
    for count in range(3, rank, -1):
        os.environ["WORLD_SIZE"] = str(count)
        with join_ranks(dist.PrefixStore(f"of {count}", store), timeout_minutes=1) as ranks:
            figures, results = evaluated(ranks)
            stopped = 0
            try:
                given = how(ranks, stop=partial(eq, ranks.rank, count - 1))
                evaluate_detector({"raw": NearlyRight()}, Numbered(ranks), image_set(), masks=False, **given)
            except Interrupted:
                stopped = 1
            written = json.dumps({"figures": figures, "results": results, "stopped": stopped})
            (folder / f"{count}-{rank}.json").write_text(written)
    return 0


@pytest.mark.slow
def test_figures_and_results_are_equal_on_any_number_of_ranks(tmp_path):
    launch(on_fewer_and_fewer, tmp_path, 3)
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert sorted(found) == ["1-0", "2-0", "2-1", "3-0", "3-1", "3-2"]
    figures, results = json.loads(json.dumps(evaluated(ALONE)))
    assert all(one["figures"] == figures and one["stopped"] for one in found.values())
    for name, one in found.items():
        assert one["results"] == (results if name.endswith("-0") else {"raw": [], "ema": []})
    total = figures[0]["raw"][0]
    assert 10 < total["box_ap"] < total["box_ap50"] < 100
    assert total["box_ap"] < figures[0]["ema"][0]["box_ap"]
    assert 40 < figures[0]["pixels"][0]["miou"] < 100


def test_a_perfect_detector_is_perfect():
    model = NearlyRight(0).train()
    found = evaluate_detector({"raw": model}, Numbered(ALONE), image_set(), masks=True, **how(ALONE))["raw"]
    assert model.training
    assert {found.figures.total[key] for key in ("box_ap", "mask_ap", "box_ar100", "mask_ap75")} == {100.0}
    assert [row["image_id"] for row in found.found] == sorted((row["image_id"] for row in found.found), reverse=True)
    assert box_and_mask_figures(truth(), found.found, masks=True) == found.figures


def test_every_image_counts_once():
    done = []
    given = how(ALONE, advance=done.append)
    evaluate_segmenter({"raw": Segmenter()}, Numbered(ALONE), list("abc"), samples=IMAGES, **given)
    assert done == [2, 2, 2, 2, 2, 1]
    model = Segmenter().train()
    for batches, wrong in (([[0, 1], [1, 2]], 9), ([[0, 0], list(range(1, IMAGES))], 1), ([[0]], 10)):
        with pytest.raises(RuntimeError, match=f"{wrong} of 11 images were not evaluated exactly once"):
            loader = Numbered(ALONE, batches)
            evaluate_segmenter({"raw": model}, loader, list("abc"), samples=IMAGES, **how(ALONE))
    assert model.training


def test_a_segmenter_is_measured_at_the_size_of_the_file():
    """Against the counts of single pixels, upsampled by hand."""
    found = evaluate_segmenter({"raw": Segmenter()}, Numbered(ALONE), list("abc"), samples=IMAGES, **how(ALONE))["raw"]
    expected = np.zeros((3, 3), dtype=np.int64)
    for number in range(IMAGES):
        target, logits = classes_of(number), Segmenter().logits(number)[None]
        best = torch.nn.functional.interpolate(logits, scale_factor=HALF, mode="bilinear").argmax(1)[0]
        for one, other in zip(target.flatten().tolist(), best.flatten().tolist(), strict=True):
            if one != 255:
                expected[one, other] += 1
    assert found.found.tolist() == expected.tolist()


def test_results_of_an_image():
    """Boxes in pixels of the file, cut at its border; what lies outside, or is no box, is left out."""
    nan = float("nan")
    output = {
        "boxes": torch.tensor([[1, 2, 11, 22.00011], [-5, -5, 3, 70], [60, 5, 70, 9], [nan, 0, 4, 4], [4, 4, 4, 9]]),
        "labels": torch.tensor([2, 1, 1, 1, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]),
    }
    rows = coco_results(output, (40, 50), (80, 150), CATEGORIES, masks=False)
    assert [row["bbox"] for row in rows] == [[3.0, 4.0, 30.0, 40.0], [0.0, 0.0, 9.0, 80.0]]
    assert [row["category_id"] for row in rows] == [8, 3]
    assert [row["score"] for row in rows] == output["scores"][:2].tolist()


def test_masks_are_pasted_between_the_centres_of_their_cells():
    """As grid_sample does, which detectron2 uses; and an ellipse covers its ellipse."""
    random = torch.Generator().manual_seed(0)
    shapes = torch.rand(5, 28, 28, generator=random)
    boxes = torch.tensor([[3, 4, 33, 24], [0, 0, 80, 60], [70.3, 50.2, 80, 60], [5.5, 5.5, 6.5, 8], [0, 9, 20.5, 60]])
    rows, columns = torch.arange(60) + 0.5, torch.arange(80) + 0.5
    for shape, box in zip(shapes, boxes, strict=True):
        ours = torch.from_numpy(pasted(shape.double().numpy(), box.double().numpy(), (60, 80)))
        x, y = (columns - box[0]) / (box[2] - box[0]) * 2 - 1, (rows - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
        theirs = torch.nn.functional.grid_sample(shape[None, None].double(), grid.double(), align_corners=False)[0, 0]
        assert torch.equal(ours[(theirs - 0.5).abs() > 1e-6], (theirs >= 0.5).byte()[(theirs - 0.5).abs() > 1e-6])
    cells = (torch.arange(28) + 0.5) / 28 - 0.5
    disc = (cells[:, None] ** 2 + cells**2 <= 0.25).float()
    output = {"boxes": boxes[:1], "labels": torch.tensor([1]), "scores": torch.tensor([0.5]), "masks": disc[None]}
    (row,) = coco_results(output, (60, 80), (120, 160), CATEGORIES, masks=True)
    assert isinstance(row["segmentation"]["counts"], str) and row["segmentation"]["size"] == [120, 160]
    drawn = mask.decode(row["segmentation"])
    rows, columns = np.mgrid[:120, :160] + 0.5
    ellipse = ((columns - 36) / 60) ** 2 + ((rows - 28) / 40) ** 2 <= 0.25
    assert (drawn & ellipse).sum() / (drawn | ellipse).sum() > 0.95
