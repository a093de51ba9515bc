"""The table of predictions: what it holds, its files, comparisons of two."""

import csv

import numpy as np
import pytest
import torch

from cotnet.engine.evaluation import results
from cotnet.errors import InputError
from cotnet.evaluation import comparison, predictions
from cotnet.evaluation.metrics import confusions, per_class

LABELS = np.array([0, 1, 2, 2])
LOGITS = torch.tensor([[5.0, 1, 0, -1, -2, -3], [0, 1, 4, 3, 2, -1], [0, 0.5, 9, 1, 2, 3], [6, 5, -9, 4, 3, 2]])
FILES = ("a/1.jpg", "b/2.jpg", "c/3.jpg", "c/4.jpg")


def table(logits=LOGITS, labels=LABELS, files=FILES, **given):
    return predictions.from_table(results(logits, torch.from_numpy(labels)), files, labels, **given)


def test_rows_by_hand():
    found = table()
    assert found.best[1].tolist() == [2, 3, 4, 1, 0]
    assert found.correct.tolist() == [True, False, True, False]
    assert found.hits.any(axis=1).tolist() == [True, True, True, False]
    shares = LOGITS.double().softmax(1)
    assert found.confidence == pytest.approx(shares.max(1).values.numpy(), abs=1e-12)
    assert found.loss == pytest.approx(-shares[range(4), LABELS].log().numpy(), abs=1e-12)


def test_fewer_classes_than_five():
    found = table(LOGITS[:, :3])
    assert found.best[1].tolist() == [2, 1, 0, -1, -1]
    assert found.probabilities[1, 3:].tolist() == [0, 0]


def test_restricted_logits_are_classes_of_the_model_again():
    columns = np.array([10, 20, 30, 40, 50, 60])
    found = table(columns=columns)
    assert found.labels.tolist() == [10, 20, 30, 30]
    assert found.best[1].tolist() == [30, 40, 50, 20, 10]
    assert found.correct.tolist() == [True, False, True, False]


def test_any_of_several_labels_is_right():
    sets = (frozenset({5}), frozenset({2, 4}), frozenset({1, 0}), frozenset({1}))
    found = table(label_sets=sets)
    assert found.correct.tolist() == [False, True, False, False]
    assert found.hits.any(axis=1).tolist() == [False, True, True, True]
    assert np.isnan(found.loss).all()


def test_files_read_back(tmp_path):
    found = table()
    predictions.write(found, tmp_path, ["csv", "parquet", "imagenet_x"])
    with (tmp_path / "predictions.csv").open() as file:
        assert next(csv.reader(file)) == [
            *("file", "label", "top1", "top2", "top3", "top4", "top5"),
            *("p1", "p2", "p3", "p4", "p5", "loss", "correct"),
        ]
    again = predictions.read(tmp_path / "predictions.csv")
    assert again.files == FILES
    for name in ("labels", "best", "probabilities", "loss", "correct"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert columns["p1"] == found.confidence.tolist() and columns["correct"] == [True, False, True, False]
    lines = (tmp_path / "imagenet_x.csv").read_text().splitlines()
    assert lines[0] == "file_name,predicted_class,predicted_probability"
    assert lines[2] == f"2.jpg,2,{found.confidence[1]!r}".replace("np.float64(", "").replace(")", "")


def test_images_without_labels(tmp_path):
    found = table(labels=np.full(4, -1))
    predictions.write(found, tmp_path, ["csv"], words=list("uvwxyz"))
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["label"] == rows[1]["loss"] == rows[1]["correct"] == ""
    assert [rows[1][f"class{place}"] for place in (1, 2, 5)] == ["w", "x", "u"]
    with pytest.raises(InputError, match="images without labels have no accuracy"):
        predictions.read(tmp_path / "predictions.csv")


def test_classes_and_their_confusions():
    classes, words = list("pqrstu"), [f"word {one}" for one in "pqrstu"]
    rows = list(per_class(table(), classes, words))
    assert [row[:5] for row in rows] == [
        ["p", "word p", 1, 1, 100.0], ["q", "word q", 1, 0, 0.0], ["r", "word r", 2, 1, 50.0],
    ]  # fmt: skip
    assert rows[1][-3:] == ["word r (1)", None, None]
    assert list(confusions(table(), classes, words)) == [
        ["q", "r", 1, 1.0, "word q", "word r"], ["r", "p", 1, 0.5, "word r", "word p"],
    ]  # fmt: skip


def test_comparison_by_hand():
    a, b = table(), table(LOGITS.flip(0), files=FILES)
    found = comparison.compare(a, b, ("A", "B"))
    assert b.correct.tolist() == [True, False, True, False]
    shuffled = table(LOGITS[[2, 0, 3, 1]], LABELS[[2, 0, 3, 1]], tuple(FILES[i] for i in (2, 0, 3, 1)))
    assert comparison.compare(a, shuffled, ("A", "B"))["top1"]["difference"] == 0
    assert (found["top1"]["only_a_right"], found["top1"]["only_b_right"]) == (0, 0)
    worse = table(torch.tensor([[0.0, 1, 0, 0, 0, 0]] * 4))
    found = comparison.compare(a, worse, ("A", "B"))
    assert found["top1"]["difference"] == 25.0 and found["top1"]["mcnemar_p"] == 1.0
    assert [one["file"] for one in found["flipped"]] == ["a/1.jpg", "b/2.jpg", "c/3.jpg"]
    assert found["nll"]["difference"] == pytest.approx(a.loss.mean() - worse.loss.mean())


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (("a/1.jpg", "b/2.jpg", "c/3.jpg", "x.jpg"), LABELS, r"different images \(only in A: 1 \(c/4.jpg\); only in B"),
        (FILES, np.array([0, 1, 2, 3]), r"1 images have other labels in B than in A \(first: c/4.jpg\)"),
    ],
)
def test_other_images_are_not_compared(files, labels, message):
    with pytest.raises(InputError, match=message):
        comparison.compare(table(), table(labels=labels, files=files), ("A", "B"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("file,label\na,1\n", "not a whole table"), ("", "holds no image"), (None, "no predictions at")],
)
def test_a_damaged_table_is_one_line(tmp_path, content, message):
    path = tmp_path / "predictions.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        predictions.read(path)
