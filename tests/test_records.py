import json
import math
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from cotnet import records
from cotnet.errors import InputError
from cotnet.files import write_text


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write_steps(path: Path, *steps: int) -> None:
    for step in steps:
        records.append(path, {"step": step, "epoch": step / 7})


def steps_in(path: Path) -> list[int]:
    return [record["step"] for record in records.read(path)]


def test_every_float_comes_back_bit_for_bit(metrics):
    draw = random.Random(0)
    values = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(2000)]
    values = [value for value in values if math.isfinite(value)] + [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3]
    for step, value in enumerate(values):
        records.append(metrics, {"step": step, "train/loss": value})
    back = records.read(metrics)
    assert [record["step"] for record in back] == list(range(len(values)))
    assert [struct.pack("<d", record["train/loss"]) for record in back] == [struct.pack("<d", v) for v in values]
    assert all(isinstance(record["step"], int) for record in back)


def test_what_is_not_a_number_is_written_as_null(metrics):
    records.append(metrics, {"step": 1, "train/loss": math.nan, "train/lr": math.inf})
    records.append(metrics, {"step": 2, "train/loss": -math.inf, "train/lr": 0.5})
    forbidden = []
    lines = [json.loads(line, parse_constant=forbidden.append) for line in metrics.read_text().splitlines()]
    assert forbidden == []
    assert lines == [
        {"step": 1, "train/loss": None, "train/lr": None},
        {"step": 2, "train/loss": None, "train/lr": 0.5},
    ]
    records.write_json(metrics.with_name("summary.json"), {"a": {"b": [1.5, math.nan]}})
    assert json.loads(metrics.with_name("summary.json").read_text()) == {"a": {"b": [1.5, None]}}


def test_a_record_is_on_disk_when_append_returns(metrics):
    code = "import os, sys; from pathlib import Path; from cotnet import records\n"
    code += f"records.append(Path({str(metrics)!r}), {{'step': 1}}); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert metrics.read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize("tail", [b'{"step": 3, "train/lo', b'{"step": 3}', b"\0" * 40, b"\0" * 40 + b"\n", b"7"])
def test_a_torn_last_line_is_dropped(metrics, tail):
    write_steps(metrics, 1, 2)
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + tail)
    assert steps_in(metrics) == [1, 2]
    records.cut_back(metrics, 5, evaluated=True)
    assert metrics.read_bytes() == whole


def test_damage_before_the_last_line_is_an_error_that_names_the_line(metrics):
    metrics.write_bytes(b'{"step": 1}\n{"step": 2\n{"step": 3}\n')
    for call in (lambda: records.read(metrics), lambda: records.cut_back(metrics, 3, evaluated=True)):
        with pytest.raises(InputError, match=r"metrics\.jsonl, line 2"):
            call()
    assert metrics.read_bytes().count(b"\n") == 3


def test_cut_back_keeps_the_records_up_to_the_step(metrics):
    write_steps(metrics, 10, 20, 20, 30, 40)
    lines = metrics.read_bytes().splitlines(keepends=True)
    records.cut_back(metrics, 20, evaluated=True)
    assert metrics.read_bytes() == b"".join(lines[:3])
    records.cut_back(metrics, 0, evaluated=True)
    assert metrics.read_bytes() == b""
    assert list(metrics.parent.iterdir()) == [metrics]


def test_a_validation_that_no_checkpoint_knows_of_is_dropped(metrics):
    """A stop in the middle of an evaluation saves its step; a kill after the evaluation, before the next save."""
    rows = [{"step": 4, "val/top1": 10.0}, {"step": 8, "train/loss": 2.0}, {"step": 8, "val/top1": 20.0}]
    for row in rows:
        records.append(metrics, row)
    records.cut_back(metrics, 8, evaluated=True)
    assert records.read(metrics) == rows
    records.cut_back(metrics, 8, evaluated=False)
    assert records.read(metrics) == rows[:2]


def test_cut_back_leaves_a_file_alone_that_has_nothing_to_drop(metrics):
    write_steps(metrics, 10, 20)
    before = metrics.stat()
    records.cut_back(metrics, 20, evaluated=True)
    after = metrics.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_missing_file_is_fine_only_where_no_step_was_done(metrics):
    records.cut_back(metrics, 0, evaluated=True)
    records.sync(metrics)
    assert not metrics.exists()
    with pytest.raises(InputError, match=r"metrics\.jsonl is missing, but the checkpoint stands at step 7"):
        records.cut_back(metrics, 7, evaluated=True)
    with pytest.raises(FileNotFoundError):
        records.read(metrics)


def test_write_json_replaces_the_file_whole(tmp_path):
    path = tmp_path / "summary.json"
    records.write_json(path, {"status": "running", "best_top1": 97.77777777777777})
    records.write_json(path, {"status": "finished", "best_top1": 0.1 + 0.2, "best_top5": None})
    assert json.loads(path.read_text()) == {"status": "finished", "best_top1": 0.1 + 0.2, "best_top5": None}
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()


def test_a_value_that_json_does_not_know_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    records.write_json(path, {"status": "running"})
    with pytest.raises(TypeError):
        records.write_json(path, {"status": object()})
    with pytest.raises(TypeError):
        records.append(path, {"step": object()})
    assert json.loads(path.read_text()) == {"status": "running"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "summary.json"
    records.write_json(path, {"status": "running"})
    # The limit on the size of files stands in for a full disk.
    code = "import resource, signal; from pathlib import Path; from cotnet import records\n"
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    code += f"records.write_json(Path({str(path)!r}), {{'status': 'x' * 10000}})"
    failed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "OSError: [Errno 27] File too large" in failed.stderr
    assert json.loads(path.read_text()) == {"status": "running"}
    assert list(tmp_path.iterdir()) == [path]
