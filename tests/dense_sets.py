"""Small sets for detection and segmentation, written by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((40, 60), (60, 40), (48, 48))  # height, width


def square(image: int, x: float, y: float, side: float = 10, **more: Any) -> dict[str, Any]:
    """An annotation with a square box and its outline."""
    outline = [[x, y, x + side, y, x + side, y + side, x, y + side]]
    return {"image_id": image, "category_id": 7, "bbox": [x, y, side, side], "segmentation": outline, **more}


def write_coco(
    root: Path,
    annotations: Sequence[Mapping[str, Any]],
    *,
    split: str = "train",
    sizes: Sequence[tuple[int, int]] = SIZES,
    categories: Mapping[int, str] = {7: "cat", 3: "dog"},
) -> Path:
    """Images of noise, 11.png onward with ids 11 onward, and the annotation file; ids from 1. Returns its path."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images = []
    for number, (height, width) in enumerate(sizes, start=11):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    content = {
        "info": {},
        "images": images,
        "annotations": [
            {"id": number, "iscrowd": 0, "area": 1.0, **each} for number, each in enumerate(annotations, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    path = root / "annotations" / f"instances_{split}2017.json"
    path.write_text(json.dumps(content))
    return path


def write_ade(root: Path, maps: Sequence[np.ndarray], *, part: str = "training") -> tuple[Path, Path]:
    """Label maps, and images of noise of their sizes. Returns the folders of images and maps."""
    folders = [root / "ADEChallengeData2016" / kind / part for kind in ("images", "annotations")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, labels in enumerate(maps):
        noise = np.random.default_rng(number).integers(0, 256, (*labels.shape, 3), np.uint8)
        Image.fromarray(noise).save(folders[0] / f"ADE_{number}.jpg", quality=95)
        Image.fromarray(labels).save(folders[1] / f"ADE_{number}.png")
    return folders[0], folders[1]
