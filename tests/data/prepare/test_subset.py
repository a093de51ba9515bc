import numpy as np
import pytest
from photographs import make_imagenet

from cotnet.errors import DataError
from cotnet.files import locked
from data.prepare.__main__ import main
from data.sets.read import class_words, read_split, read_splits


@pytest.fixture
def root(tmp_path):
    return make_imagenet(tmp_path / "set", classes=4, train=10, val=3, side=24)


def subset(capsys, root, out, *arguments):
    code = main(["subset", "--root", str(root), "--out", str(out), *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_share_is_stratified_fixed_and_nested(root, tmp_path, capsys):
    whole, val = read_splits(root)
    parts = {}
    for share in ("0.3", "0.5", "1"):
        out = tmp_path / "lists" / f"{share}.csv"
        assert subset(capsys, root, out, "--share", share)[0] == 0
        train, same = read_splits(out)
        parts[share] = {train.path(i).resolve() for i in range(len(train.files))}
        assert np.bincount(train.labels).tolist() == [round(10 * float(share))] * 4
        assert [same.path(i).resolve() for i in range(12)] == [val.path(i).resolve() for i in range(12)]
        assert train.classes == whole.classes
    assert parts["0.3"] < parts["0.5"] < parts["1"]
    assert parts["1"] == {whole.path(i).resolve() for i in range(40)}


def test_chosen_classes(root, tmp_path, capsys):
    out = tmp_path / "two.csv"
    code, text = subset(capsys, root, out, "--classes", "n01484850,n01440764")
    assert (code, text) == (0, f"{out}: 20 training and 6 validation images of 2 classes\n")
    train, val = read_splits(out)
    assert train.classes == val.classes == ("n01440764", "n01484850")
    assert all(
        file.startswith(f"set/train/{train.classes[label]}/")
        for file, label in zip(train.files, train.labels, strict=True)
    )
    assert class_words(out, train.classes) == train.classes
    (root / "words.json").write_text(
        '{"n01440764": "tench", "n01484850": "great white shark", "n01443537": "goldfish"}'
    )
    subset(capsys, root, out, "--classes", "n01484850,n01440764")
    assert class_words(out, train.classes) == ("tench", "great white shark")
    (root / "words.json").write_text("[]")
    with pytest.raises(DataError, match=r"words\.json: not a JSON object of class: words; mend or remove it"):
        class_words(root, train.classes)
    (root / "words.json").unlink()
    again = tmp_path / "of-a-list.csv"
    assert subset(capsys, out, again, "--classes", "n01484850")[0] == 0
    assert read_split(again, "train").classes == ("n01484850",)


def test_a_list_that_another_process_writes_stays(root, tmp_path, capsys):
    out = tmp_path / "list.csv"
    subset(capsys, root, out, "--share", "0.3")
    before = out.read_bytes()
    with locked(tmp_path / ".list.csv.lock"):
        refused = (2, f"{out} is in use by another process; wait for it or choose another --out\n")
        assert subset(capsys, root, out, "--share", "0.5") == refused
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".list.csv.lock", "list.csv", "set"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "n01440764,dog"), "has no classes dog; it has n01440764, n01443537, n01484850 and 1 more"),
        (("--share", "1.5"), "--share 1.5 is not in (0, 1]"),
    ],
)
def test_impossible_subsets(root, tmp_path, capsys, arguments, message):
    code, text = subset(capsys, root, tmp_path / "list.csv", *arguments)
    assert code == 2
    assert message in text
    assert not (tmp_path / "list.csv").exists()
