import json
from dataclasses import replace

import pytest
import torch
from programs import make_digits

from cotnet.benchmarks.bottleneck import Rates, largest_that_fits, main, reading_rate, verdict
from cotnet.errors import RunError
from data.sets.read import read_split

BALANCED = Rates(
    reading=5000,
    decoding=1000,
    loader=900,
    model=1000,
    loaders={("dali", 4): 900, ("torchvision", 4): 500},
    batches={64: 1000, 128: 1050},
    overlap=True,
    configured=64,
    fits=64,
)


@pytest.mark.parametrize(
    ("change", "limit", "advice"),
    [
        ({}, "about 900 images/s; decoding is the limit", "as good as anything that was tried"),
        (
            {"model": 300, "batches": {64: 300}},
            "about 300 images/s; the model is the limit: the loader alone is 3.0",
            "",
        ),
        (
            {"loader": 500},
            "about 500 images/s; the augmentation is the limit",
            "loader=dali loader.threads=4 (900 inst",
        ),
        ({"reading": 950}, "reading is the limit: put the set on a faster disk", ""),
        ({"overlap": False}, "about 474 images/s; decoding is the limit", ""),
        ({"batches": {64: 1000, 128: 1300}}, "", "better: 128 images per rank and step (1,300 instead of 1,000"),
        (
            {"configured": 256},
            "",
            "256 images per rank and step do not fit the memory, 64 do: set train.accumulation to 4 times its value",
        ),
        ({"loaders": {("dali", 4): 900, ("dali", 8): 1600}}, "", "better: loader=dali loader.threads=8 (1,600 instead"),
    ],
)
def test_verdict(change, limit, advice):
    lines = verdict(replace(BALANCED, **change))
    assert limit in lines[0]
    assert any(advice in line for line in lines)


def test_batches_are_halved_until_one_fits():
    def measure(batch):
        if batch > 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return 10.0 * batch

    assert largest_that_fits(measure, 100) == (12, 120.0)
    assert largest_that_fits(measure, 24) == (24, 240.0)
    with pytest.raises(RunError, match="not even 2 images fit the GPU's memory"):
        largest_that_fits(lambda batch: measure(100), 100)


def test_reading_counts_files_once(tmp_path):
    found = read_split(make_digits(tmp_path / "digits", train=4, val=1), "train")
    assert reading_rate(found, threads=2, seconds=1) > 100


@pytest.mark.slow
def test_on_a_small_run(tmp_path, capsys):
    root = make_digits(tmp_path / "digits", train=8, val=1)
    overrides = ["experiment=digits", f"data.root={root}", "train.batch_size=16", "train.precision=fp32"]
    main([*overrides, "--seconds", "0.05", "--json", str(tmp_path / "limits.json")])
    records = json.loads((tmp_path / "limits.json").read_text())["records"]
    assert [record["name"] for record in records[:4]] == ["reading", "decoding", "loader", "model"]
    assert all(record["images_per_second"] > 0 for record in records)
    assert {"batch 8", "batch 16", "batch 32"} <= {record["setting"] for record in records}
    assert "expected: about " in capsys.readouterr().out


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([f"data.root={tmp_path}/nowhere"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: data.root={tmp_path}/nowhere: no such folder")
