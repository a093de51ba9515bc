"""An image set that is listed in a file of JSON lines."""

import json
from dataclasses import dataclass

import numpy as np

from cotnet.errors import DataError
from cotnet.settings import DataSettings, setting
from data.sets.image_set import ImageSet, complete_set


@dataclass(frozen=True, kw_only=True)
class Indexed(DataSettings):
    """`data` of images that `root`/`index` lists: split, file and class in each line."""

    index: str = setting("name of the list, in `data.root`")

    def read_split(self, split: str) -> ImageSet:
        """The images of one split, in the order of their names. Raises DataError."""
        path = self.root / self.index
        if not path.exists():
            raise DataError(f"{path}: no such file")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        chosen = sorted((row["class"], row["file"]) for row in rows if row["split"] == split)
        names, labels = np.unique([name for name, _ in chosen], return_inverse=True)
        files = tuple(file for _, file in chosen)
        return complete_set(self.root, files, labels=labels.astype(np.int64), classes=tuple(names.tolist()))
