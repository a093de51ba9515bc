"""Drawn images with their boxes, masks and classes, and the settings of small detectors."""

import torch

from cotnet.dense.detectors import build_detector
from cotnet.dense.semantic import build_segmenter
from cotnet.dense.settings import DetectionTask, SegmentationTask

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = ("retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
CLASSES = 3  # rectangles, discs, triangles


def detection(head, **changes):
    settings = {"freeze": 0, "norm": "none", "channels": 16, "anchor_sizes": (8, 16, 24, 32, 48)}
    settings |= {"weights": None, "rois": 32} | {
        "box_head": "2fc",
        "box_loss": "l1",
        "score_threshold": 0.05,
        "nms_threshold": 0.5,
    }
    return DetectionTask(head=head, max_detections=20, **settings | changes)


def segmentation(**changes):
    settings = {"weights": None, "freeze": 0, "norm": "bn", "channels": 16, "head_channels": 16, "dropout": 0.1}
    return SegmentationTask(head="semantic_fpn", **settings | changes)


def detector(backbone, head, **changes):
    return build_detector(backbone, detection(head, **changes), num_classes=CLASSES, mean=MEAN, std=STD)


def segmenter(backbone, num_classes=CLASSES + 1, **changes):
    return build_segmenter(backbone, segmentation(**changes), num_classes=num_classes, mean=MEAN, std=STD)


def slim(model):
    """Fewer proposals and samples, which is enough for drawn images."""
    if hasattr(model, "rpn"):
        model.rpn._pre_nms_top_n = model.rpn._post_nms_top_n = {"training": 100, "testing": 100}
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    return model


def shape(kind, side, box):
    """(side, side) bool: a rectangle (1), disc (2) or triangle (3) that fills the box."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    left, top, right, bottom = box.tolist()
    u, v = (x - left) / (right - left), (y - top) / (bottom - top)
    inside = (u > 0) & (u < 1) & (v > 0) & (v < 1)
    return inside & (inside, (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.25, v > (2 * u - 1).abs())[kind - 1]


def draw(number, side=64):
    """An image with one or two shapes and its target; every eighth image is empty."""
    numbers = torch.Generator().manual_seed(number)
    image = torch.randint(0, 40, (3, side, side), generator=numbers, dtype=torch.uint8)
    classes = torch.zeros(side, side, dtype=torch.int64)
    boxes, labels, masks = [], [], []
    for column in range(0 if number % 8 == 7 else 1 + number % 2):
        width, height = torch.randint(side // 4, side // 2 - 2, (2,), generator=numbers).tolist()
        left, top = column * side // 2 + 1, int(torch.randint(0, side - height, (1,), generator=numbers))
        kind = int(torch.randint(1, CLASSES + 1, (1,), generator=numbers))
        boxes.append([left, top, left + width, top + height])
        mask = shape(kind, side, torch.tensor(boxes[-1]))
        image[kind - 1][mask] = 220
        classes[mask] = kind
        labels.append(kind)
        masks.append(mask)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.stack(masks).to(torch.uint8) if masks else torch.zeros(0, side, side, dtype=torch.uint8),
        "classes": classes,
    }
    return image, target


def batch(numbers, side=64):
    """Images and targets of several numbers."""
    images, targets = zip(*[draw(number, side) for number in numbers], strict=True)
    return list(images), list(targets)


def loss_of(model, images, targets, seed=0):
    """The sum of the losses, with the samplers' random numbers from the seed."""
    torch.manual_seed(seed)
    return sum(model(images, targets).values())


def without_gradient(model):
    """Parameters that require a gradient but have none, or one that is not finite."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
    ]


def train(model, steps, lr, per_step=2):
    """Train on 24 drawn images; the mean losses of the first three and of the last six steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for step in range(steps):
        numbers = [(step * per_step + index) % 24 for index in range(per_step)]
        loss = loss_of(model, *batch(numbers), seed=step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[:3]) / 3, sum(losses[-6:]) / 6
