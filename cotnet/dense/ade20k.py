"""ADE20K (Zhou et al., "Scene Parsing through ADE20K Dataset", 2017): images and their label maps."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from cotnet.errors import DataError
from data.loading.decoding import decoded_rgb
from data.sets.image_set import (
    DECODING_ERRORS,
    EXTENSIONS,
    IGNORED,
    DamagedImageError,
    damaged,
    damaged_reason,
    some,
    visible,
)

NAMES: Final = "objectInfo150.txt"


@dataclass(frozen=True, kw_only=True)
class LabelMapSet:
    """N images of one split, sorted by name, each with a PNG of its pixels' labels."""

    root: Path  # folder of the images
    maps: Path  # folder of the label maps
    files: tuple[str, ...]  # N names below root; the map has the same name, with .png
    categories: tuple[str, ...]  # K names
    fingerprint: str  # SHA-256 (hex) of the names of classes and files

    def classes(self, index: int) -> np.ndarray:
        """(h, w) uint8: 0..K-1, or 255. In the file 1..K are the classes and 0 is other, which is ignored.

        Raises DataError for a map that is damaged, has several channels or a label above K.
        """
        path = self.maps / f"{Path(self.files[index]).stem}.png"
        labels = decoded(path, rgb=False)
        if labels.ndim != 2 or labels.max() > len(self.categories):
            found = f"label {labels.max()}" if labels.ndim == 2 else "several channels"
            raise DataError(f"{path}: {found}, not 0 to {len(self.categories)}; mend it or set data.num_classes")
        return labels.astype(np.uint8) - np.uint8(1)  # 0 becomes 255


def decoded(path: Path, *, rgb: bool) -> np.ndarray:
    """Pixels (h, w, 3) uint8, or as stored (h, w) or (h, w, channels). EXIF orientation is ignored.

    Raises DataError for a file that is missing or does not decode.
    """
    try:
        with Image.open(path) as image:
            return np.array(decoded_rgb(image, path) if rgb else image)
    except FileNotFoundError as error:
        raise damaged(path, error) from error
    except DECODING_ERRORS as error:
        raise DamagedImageError(path, damaged_reason(error), "copy it again") from error


def read_ade20k(root: Path, split: Literal["train", "val"], *, num_classes: int) -> LabelMapSet:
    """root/ADEChallengeData2016/{images,annotations}/{training,validation}; no image is opened.

    Raises DataError for missing folders and maps, and for more classes than labels of 8 bits can name.
    """
    if num_classes >= IGNORED:
        raise DataError(f"data.num_classes={num_classes}: label maps of 8 bits name at most {IGNORED - 1}")
    top = root / "ADEChallengeData2016"
    part = {"train": "training", "val": "validation"}[split]
    folders = [top / kind / part for kind in ("images", "annotations")]
    try:
        images, maps = (sorted(entry.name for entry in visible(folder)) for folder in folders)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); data.root holds {top.name}") from error
    files = tuple(name for name in images if name.lower().endswith(EXTENSIONS))
    there = set(maps)
    missing = [name for name in files if f"{Path(name).stem}.png" not in there]
    if missing or not files:
        what = f"no label map (.png) for {some(missing)}" if missing else f"no image in {folders[0]}"
        raise DataError(f"{folders[1]}: {what}; copy the set again")
    names = _names(top / NAMES, num_classes)
    digest = hashlib.sha256(os.fsencode("\n".join([*names, "", *files]))).hexdigest()
    return LabelMapSet(root=folders[0], maps=folders[1], files=files, categories=names, fingerprint=digest)


def _names(path: Path, count: int) -> tuple[str, ...]:
    """Names of classes: the last column of the table, up to the first comma; or numbers, if it names not so many."""
    try:
        rows = [line.split("\t") for line in path.read_text(errors="replace").splitlines()]
    except OSError:
        rows = []
    names = {row[0].strip(): row[-1].split(",")[0].strip() for row in rows}
    return tuple(names.get(str(number), f"class {number}") for number in range(1, count + 1))
