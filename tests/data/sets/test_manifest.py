import numpy as np
import pytest
from photographs import make_imagenet, photographs

from cotnet.errors import DataError
from data.check import check
from data.sets.image_set import image_size
from data.sets.read import read_splits


@pytest.fixture
def root(tmp_path):
    return make_imagenet(tmp_path / "set", classes=2, train=4, val=2)


def test_a_clean_set_reads_alike_with_and_without_its_manifest(root):
    before = read_splits(root)
    lines = check(root, workers=2)
    assert lines == [f"{root}/manifest.json: 2 classes, 8 train images (0 excluded), 4 val images (0 excluded)"]
    for plain, known in zip(before, read_splits(root), strict=True):
        assert (known.files, known.classes, known.fingerprint) == (plain.files, plain.classes, plain.fingerprint)
        assert (known.labels == plain.labels).all()
        assert known.labels.dtype == np.int64
        assert [tuple(size) for size in known.sizes] == [image_size(plain.path(i)) for i in range(len(plain.files))]
        assert known.excluded == 0


def test_a_changed_set_is_refused(root):
    check(root, workers=2)
    added = root / "train" / "n01440764" / "new.JPEG"
    photographs()[0].resize((40, 40)).save(added)
    with pytest.raises(DataError, match=r"files changed since manifest\.json was written \(n01440764/new\.JPEG\)"):
        read_splits(root)
    added.unlink()
    read_splits(root)  # another modification time alone is no change
    (root / "train" / "n09999999").mkdir()
    with pytest.raises(DataError, match=r"class folders changed since manifest\.json was written \(n09999999\)"):
        read_splits(root)
