"""What the tests of image sets share: folders of tiny images, and the one line of a DataError."""

import pytest
from PIL import Image

from cotnet.errors import DataError
from data.sets.read import read_splits


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, format="PNG")


def message(root, call=read_splits):
    with pytest.raises(DataError) as caught:
        call(root)
    text = str(caught.value)
    assert "\n" not in text
    return text
