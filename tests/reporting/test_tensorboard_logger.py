"""Event files as TensorBoard reads them, after kills, rollbacks and starts without the logger."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from event_files import assert_shown, expected, scalars
from programs import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_process import REPORTS

from cotnet.reporting.tensorboard_logger import TensorBoardLogger
from cotnet.reporting.wandb_logger import NoLogger

KILLED = """
import os, signal, sys
from pathlib import Path
from cotnet.reporting.tensorboard_logger import TensorBoardLogger
folder, logger = Path(sys.argv[1]), TensorBoardLogger()
"""
ROWS = """
made, state = reports(0)
for step in range(2, 12, 2):
    made.train(row(step, loss=1 / step))
made.validation(validated(10, 100 / 3), state)
os.kill(os.getpid(), signal.SIGKILL)
"""


def reports(folder, logger):
    """The function `reports` of REPORTS, and `row` and `validated`."""
    names = {"folder": folder, "logger": logger}
    exec(REPORTS, names)
    return names["reports"], names["row"], names["validated"]


@pytest.mark.slow
def test_tensorboard_shows_what_metrics_holds(tmp_path, caplog):
    process = subprocess.run([sys.executable, "-c", KILLED + REPORTS + ROWS, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert_shown(tmp_path)
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [2, 4, 6, 8, 10]

    (file,) = (tmp_path / "tensorboard").iterdir()
    ahead = file.with_name(file.name.replace(file.name.split(".")[3], f"{int(time.time()) + 3600}"))
    file.rename(ahead)  # another machine's clock
    begin, row, validated = reports(tmp_path, TensorBoardLogger())  # killed at step 10, the checkpoint stands at 6
    made, state = begin(6, "1a2b3c4d")
    assert state.run_id == "1a2b3c4d"
    assert_shown(tmp_path)
    with made:
        for step in (8, 10):
            made.train(row(step, loss=2.5 / step))
        made.validation(validated(10, 50.0), state)
        state.step, state.last_eval_step = 6, -1
        made.rolled_back(state, "back to step 6")
        for step in (8, 10):
            made.train(row(step, loss=3.5 / step))
        made.validation(validated(10, 25.0), state)
        assert_shown(tmp_path)  # while the run goes on
    assert expected(tmp_path)["train/loss"][-1] == (10, pytest.approx(0.35))

    begin, row, _ = reports(tmp_path, NoLogger())  # a start without the logger
    with begin(10)[0] as made:
        made.train(row(12))
    begin, row, _ = reports(tmp_path, TensorBoardLogger())
    with begin(12)[0] as made:
        made.train(row(14))
    assert_shown(tmp_path)
    assert [step for step, _ in scalars(tmp_path)["train/grad_norm"]] == [2, 4, 6, 8, 10, 12, 14]


def test_the_configuration_is_a_text(tmp_path):
    logger = TensorBoardLogger()
    config = {"train": {"epochs": 3}, "seed": 7}
    assert logger.start(tmp_path, config, None, "a-run") == ""
    assert logger.finish(0) == {}
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    (event,) = found.Tensors("config/text_summary")
    (text,) = event.tensor_proto.string_val
    assert json.loads(text.decode().removeprefix("```json\n").removesuffix("\n```")) == config


def test_without_the_extra_nothing_starts(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    given = ["experiment=digits", f"data.root={digits}", "train.batch_size=20", "logger=tensorboard"]
    done = run("train.py", *given, "output_dir=run", cwd=tmp_path, code=2)
    assert done.stderr == (
        "error: logger=tensorboard needs the package tensorboard; pip install 'cotnet[tensorboard]'\n"
    )
    assert list(Path(tmp_path).iterdir()) == []
