"""The check of the claims for GPUs, without one: every stage in small, exit code 2, and what a failure looks like."""

import json

import pytest
import torch

from cotnet.engine.precision import Precision
from cotnet.errors import RunError
from cotnet.gpu_check.__main__ import STAGES, check, last_line, main
from cotnet.gpu_check.exactness import gradients, relative_errors
from cotnet.gpu_check.stage import Bench, Claim, run_python

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
QUICK = ("environment", "decoding")
OTHERS = tuple(name for name in STAGES if name not in QUICK)


def checked_here(stages, tmp_path, capsys):
    """The lines and the findings of the program on this CPU."""
    file = tmp_path / "check.json"
    assert main(["--stages", *stages, "--json", str(file)]) == 2
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(file.read_text())
    assert not found["gpu"]
    assert list(dict.fromkeys(row["stage"] for row in found["findings"])) == list(stages)
    return lines, found["findings"]


@no_gpu
@pytest.mark.slow
@pytest.mark.parametrize("stages", [QUICK, pytest.param(OTHERS, marks=pytest.mark.long)])
def test_without_a_gpu_every_stage_runs_in_small(stages, tmp_path, capsys):
    lines, found = checked_here(stages, tmp_path, capsys)
    assert [row for row in found if row["passed"] is False] == []
    assert all(" (in small, on a CPU): " in line for line in lines[:-1] if line.startswith(("PASS", "FAIL", "----")))
    unchecked = dict.fromkeys(row["stage"] for row in found if row["passed"] is None)
    passed = sum(row["passed"] is True for row in found)
    assert lines[-1].startswith(f"no GPU: {passed} of {len(found)} claims hold, 0 do not; ")
    assert lines[-1].endswith(f"; not checked on a GPU: everything, and not at all: {', '.join(unchecked)}")


def fails(_bench):
    yield Claim("one and one are two", "3", passed=False)
    raise RunError("it broke")


def holds(_bench):
    yield Claim("one is one", "1", passed=True)


def test_a_failure_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    for name, stage in (("fails", fails), ("holds", holds)):
        monkeypatch.setitem(STAGES, name, stage)
    file = tmp_path / "check.json"
    rows = check(["fails", "holds"], Bench(device=CPU, folder=tmp_path), file)
    assert [(row["stage"], row["passed"]) for row in rows] == [("fails", False), ("fails", False), ("holds", True)]
    assert "it broke" in rows[1]["figure"]
    assert json.loads(file.read_text())["findings"] == rows
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FAIL  fails: one and one are two (in small, on a CPU): 3"
    for gpu in (True, False):
        line, code = last_line(rows, gpu=gpu, file=file)
        assert code == 1
        assert f"1 of 3 claims hold, 2 do not; {file}" in line
    assert last_line(rows[2:], gpu=True, file=file) == (f"1 of 1 claims hold, 0 do not; {file}", 0)


def test_a_program_that_fails_or_hangs_is_named():
    with pytest.raises(RunError, match=r"-c .* ended with code 3: bad luck"):
        run_python("-c", "import sys; sys.stderr.write('bad luck'); sys.exit(3)", seconds=60)
    with pytest.raises(RunError, match=r"took more than 0\.2 s"):
        run_python("-c", "import time; time.sleep(60)", seconds=0.2)


def test_a_wrong_gradient_is_found():
    exact = gradients("resnet_small", 4, 32, precision=Precision(name="fp64", device=CPU))
    found = gradients("resnet_small", 4, 32, precision=Precision(name="fp32", device=CPU))
    assert 0 < max(relative_errors(found, exact).values()) < 1e-3
    found["fc.weight"] *= 1.1
    assert max(relative_errors(found, exact).values()) == pytest.approx(0.1, rel=1e-2)
