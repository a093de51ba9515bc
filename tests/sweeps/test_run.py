"""`--multirun` as a person uses it: runs side by side, failing, cut in both ways, added to, refused."""

import fcntl
import json
import os
import re
import signal
import time

import pytest
from programs import SMALL, make_digits, metrics, run, start

from cotnet.errors import InputError
from cotnet.reporting.wandb_file import read_start, run_files
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.run import outcome, shares, trials_left
from cotnet.sweeps.space import Trial

from .by_hand import begin, finish, plan

TINY = (
    "--multirun",
    *SMALL,
    "loader=torchvision",
    "loader.threads=0",
    "train.epochs=1",
    "train.max_steps=2",
    "schedule.warmup_epochs=0",
    "sweep.parallel=2",
)


def states(folder):
    return {name: entry.state for name, entry in Ledger.read(folder).entries.items()}


def starts(folder):
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [line["trial"] for line in lines if line.get("state") == "started"]


@pytest.mark.slow
def test_a_grid_fails_in_part_is_added_to_and_refuses_what_does_not_belong(tmp_path):
    make_digits(tmp_path / "digits", train=4, val=2)
    given = [*TINY, "data.root=digits"]
    done = run("train.py", *given, "optimizer.lr=0.05,-1", "logger=wandb", cwd=tmp_path, code=1)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.startswith("data.root-digits__experiment-digits__loader-torchvision__")
    failed, finished = "optimizer.lr--1", "optimizer.lr-0.05"
    assert states(folder) == {finished: "finished", failed: "failed"}
    assert json.loads((folder / finished / "summary.json").read_text())["status"] == "finished"
    (mirror,) = run_files(folder / finished)
    assert read_start(mirror).run.run_group == folder.name
    assert (folder / failed / "log.txt").read_text() == "error: optimizer.lr=-1 must be positive\n"
    table = done.stdout[done.stdout.index("status") :]
    assert "failed: optimizer.lr=-1 must be positive" in table
    top1 = max(record["val/top1"] for record in metrics(folder / finished) if "val/top1" in record)
    assert f"{top1:.6g}" in table
    assert "optimizer.lr=0.05 train.epochs=3" in table
    assert f"to look at it: {folder.relative_to(tmp_path)}/report.html" in done.stdout.splitlines()
    page = (folder / "report.html").read_text()
    assert f'href="{finished}/report.html"' in page and "optimizer.lr=-1 must be positive" in page

    again = run("train.py", *given, "optimizer.lr=-1,0.05", cwd=tmp_path, code=1)  # nothing to do
    assert "of 2 trials 1 finished, 1 failed (sweep.retry=true runs those again), 0 cut short" in again.stdout
    run("train.py", *given, "optimizer.lr=0.05,-2", cwd=tmp_path, code=1)
    assert starts(folder) == [finished, failed, "optimizer.lr--2"]

    pair = f"checkpoint={folder / finished},missing.pt"
    fed = ("data.root=digits", "loader=torchvision", "loader.threads=0", "logger=wandb")
    evaluated = run("evaluate.py", "--multirun", pair, *fed, "output_dir=evaluated", cwd=tmp_path, code=1)
    assert "no checkpoint at missing.pt" in evaluated.stderr
    (written,) = (tmp_path / "evaluated").glob("*/metrics.json")
    (mirror,) = run_files(written.parent)
    assert read_start(mirror).run.run_group == folder.name  # that of the training run
    accuracy = f"{json.loads(written.read_text())['top1']:.2f}"
    rows = [line.split() for line in evaluated.stdout.splitlines()[-3:] if line.strip()]
    assert [(row[0], row[3]) for row in rows] == [(accuracy, "finished"), ("-", "failed")]

    before = (folder / "ledger.jsonl").read_bytes()
    other = run("train.py", *given, "optimizer.lr=0.05,1", "seed=3", f"output_dir={folder}", cwd=tmp_path, code=2)
    assert "holds another sweep (shared was without it, now seed=3); choose another output_dir" in other.stderr
    wrong = run("train.py", *given, "optimizer.lr=0.05,1", "sweep.target=val/top", cwd=tmp_path, code=2)
    assert "error: sweep.target=val/top is logged by no trial; did you mean val/top5 or val/top1" in wrong.stderr
    single = run("train.py", *given[1:-2], "data.root=digits", f"output_dir={folder}", cwd=tmp_path, code=2)
    assert "holds a sweep, not a run; choose another output_dir" in single.stderr
    many = run("train.py", *given, "seed=1,2", "sweep.parallel=999", "output_dir=new", cwd=tmp_path, code=2)
    assert re.fullmatch(
        r"error: sweep\.parallel=999 but \d+ (cores may be used|GPUs are visible); use at most \d+\n", many.stderr
    )
    assert not (tmp_path / "new").exists()  # it is nobody's sweep yet
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = run("train.py", *given, "optimizer.lr=0.05,1", cwd=tmp_path, code=2)
    assert "is in use by another process" in second.stderr
    assert (folder / "ledger.jsonl").read_bytes() == before


@pytest.mark.long
@pytest.mark.slow
def test_a_search_cut_by_a_signal_and_by_a_kill_continues(tmp_path):
    digits = make_digits(tmp_path / "digits", train=9, val=2)
    given = ["--multirun", *SMALL, f"data.root={digits}", "train.epochs=3", "checkpoint.every_steps=1"]
    given += ["loader=torchvision", "loader.threads=0", "output_dir=sweep"]
    given += ["sweep=tpe", "sweep.trials=1", "optimizer.lr=tag(log,interval(0.01,0.1))"]
    folder = tmp_path / "sweep"
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        before = records(folder)
        process = start("train.py", *given, cwd=tmp_path)
        wait_for(lambda before=before: records(folder) > before, process)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, out + err
        assert "Traceback" not in err
        if number == signal.SIGTERM:
            (name,) = states(folder)
            assert states(folder) == {name: "interrupted"}
            assert json.loads((folder / name / "summary.json").read_text())["status"] == "interrupted"
            assert "interrupted; the same command continues sweep" in out
    done = run("train.py", *given, cwd=tmp_path)  # at once: the killed sweep's run may still be saving
    assert states(folder) == {name: "finished"}
    assert starts(folder) == [name] * 3
    steps = [record["step"] for record in metrics(folder / name) if "train/loss" in record]
    assert steps == list(range(2, 13, 2))
    assert (folder / name / "log.txt").read_text().count("continuing sweep") == 2
    assert f"best: {name}; to run it longer:" in done.stdout
    alone = run("train.py", *SMALL, f"data.root={digits}", "sweep=tpe", cwd=tmp_path, code=2)
    assert "error: sweep settings need --multirun" in alone.stderr


def records(folder):
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*/metrics.jsonl"))


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert condition()


def test_a_grid_runs_what_has_not_ended(tmp_path):
    for retry, left in ((False, ["a-3", "a-4"]), (True, ["a-2", "a-3", "a-4"])):
        folder = tmp_path / str(retry)
        ledger = begin(folder)
        one, two, three = (Trial(name=f"a-{i}", overrides=(f"a={i}",)) for i in (1, 2, 3))
        finish(ledger, one, [50.0])
        for trial, state in ((two, "failed"), (three, "interrupted")):
            ledger.record(trial, "started")
            ledger.record(trial, state, code=1)
        asked = plan(folder, ["a=1,2,3,4"], retry=retry)
        assert [trial.name for trial in trials_left(asked, ledger)] == left
        assert {ledger.entries[name].state for name in left} == {"started"}
        assert asked.total == 4


def test_trials_side_by_side_get_equal_shares():
    def split(parallel, gpus, cores):
        return [(share.gpus, sorted(share.cores)) for share in shares(parallel, gpus, cores)]

    assert split(2, ["3", "5", "GPU-a", "7", "1"], [0, 1]) == [(("3", "5"), [0, 1]), (("GPU-a", "7"), [0, 1])]
    assert split(2, [], [1, 4, 5, 6, 7]) == [((), [1, 4]), ((), [5, 6])]
    with pytest.raises(InputError) as error:
        shares(3, ["0", "1"], [0, 1, 2, 3])
    assert str(error.value) == "sweep.parallel=3 but 2 GPUs are visible; use at most 2"


def test_exit_codes_and_signals_are_states():
    assert [outcome(code) for code in (0, 1, 2, 75, -9, -15)] == [
        *(("finished", ""), ("failed", ""), ("failed", ""), ("interrupted", "")),
        ("interrupted", "killed by SIGKILL (often because memory ran out)"),
        ("interrupted", "killed by SIGTERM"),
    ]
