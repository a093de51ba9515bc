"""`python -m cotnet.report`: which page it writes, the leaderboard, wrong folders."""

import json
import os
import shutil

import pytest
from programs import SMALL, run

from cotnet import report
from cotnet.pages import write

pytestmark = pytest.mark.slow


def without(name):
    """importlib.metadata.version where a package is missing."""
    raise write.PackageNotFoundError(name)


def main(*arguments, code=0):
    with pytest.raises(SystemExit) as end:
        report.main([str(one) for one in arguments])
    assert int(end.value.code or 0) == code


def test_a_folder_of_runs_is_a_leaderboard(uncut, tmp_path, capsys):
    """300 runs, one of them being written: each is a row of the page and of the terminal, the best first."""
    small = ("config.yaml", "metrics.jsonl", "summary.json", "report.html")
    summary = json.loads((uncut(1) / "summary.json").read_text())
    for number in range(300):
        folder = tmp_path / "outputs" / f"run-{number:03}"
        folder.mkdir(parents=True)
        for name in small:
            os.link(uncut(1) / name, folder / name)
        (folder / "summary.json").unlink()
        (folder / "summary.json").write_text(json.dumps(summary | {"best_top1": number / 3}))
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running", "best_top1": None}))
    main(tmp_path / "outputs")
    lines = [line for line in capsys.readouterr().out.splitlines() if "/run-" in line]
    assert len(lines) == 300
    assert "run-298" in lines[0] and "99.33" in lines[0] and "finished" in lines[0]
    assert "run-299" in lines[-1] and "killed" in lines[-1]
    page = (tmp_path / "outputs" / "report.html").read_text()
    assert page.count('href="run-') == 300
    assert len(page) < 3_000_000


def test_several_folders(uncut, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(uncut(1), tmp_path / name, ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    main(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "report.html").exists()
    main(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "elsewhere" / "page.html")
    assert 'href="../a/report.html"' in (tmp_path / "elsewhere" / "page.html").read_text()
    (tmp_path / "b" / "summary.json").write_text("{")  # one damaged file leaves out one row
    old = {"top1": 50.0, "top5": 90.0, "images": 50, "weights": "raw"}  # as version 0.1 wrote it
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.json").write_text(json.dumps(old))
    capsys.readouterr()
    main(*sorted(tmp_path.iterdir()))  # outputs/*, which also names report.html
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"left out: {tmp_path / 'b' / 'summary.json'}: cannot be read as JSON")
    rows = [line for line in lines if line.startswith(str(tmp_path))]
    assert len(rows) == 2 and "50.00" in rows[0] and "/old" in rows[0] and "/a " in rows[1]
    main(tmp_path / "a")
    assert capsys.readouterr().out == f"-> {tmp_path / 'a' / 'report.html'}\n"


def test_a_leaderboard_is_not_written_over_a_runs_own_page(uncut, tmp_path):
    run_folder = shutil.copytree(uncut(1), tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    (run_folder / "evaluation").mkdir()
    (run_folder / "evaluation" / "metrics.json").write_text('{"weights": "raw"}')
    before = (run_folder / "report.html").read_bytes()
    main(run_folder, run_folder / "evaluation")
    assert (run_folder / "report.html").read_bytes() == before
    assert "2 runs and evaluations" in (tmp_path / "report.html").read_text()


def test_live_pages_are_written_again_until_ctrl_c(uncut, tmp_path, monkeypatch):
    folder = shutil.copytree(uncut(1), tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        (folder / "report.html").unlink()  # the next turn writes it again
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(report.time, "sleep", sleep)
    main(folder, "--live", "7", code=75)
    assert slept == [7, 7, 7]


def test_bad_input_is_one_line(uncut, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    main(tmp_path / "empty", code=2)
    main(tmp_path / "nowhere", code=2)
    run_folder = shutil.copytree(uncut(1), tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    (run_folder / "config.yaml").write_text("{a: [")
    main(run_folder, code=2)
    shutil.copy(uncut(1) / "config.yaml", run_folder)
    (run_folder / "report.html").unlink()
    (run_folder / "report.html").mkdir()
    main(run_folder, code=2)
    monkeypatch.setattr(write, "version", without)
    main(uncut(1), code=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    empty, nowhere, damaged, unwritable, extra = lines
    assert empty == f"error: {tmp_path / 'empty'}: no run, evaluation, comparison or sweep; give an output_dir"
    assert nowhere == f"error: {tmp_path / 'nowhere'} does not exist; give an output_dir"
    assert "config.yaml: cannot be read" in damaged and "mend or remove it" in damaged
    assert "cannot write" in unwritable and "report.html" in unwritable
    assert extra == "error: vl-convert-python is not installed; pip install 'cotnet[report]'"


@pytest.mark.long
def test_without_the_extra_training_says_so_once_and_goes_on(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "version", without)
    done = run("train.py", *SMALL, f"data.root={digits}", "output_dir=run", cwd=tmp_path)
    told = [line for line in done.stdout.splitlines() if "report.html" in line]
    assert told == ["no report.html: vl-convert-python is not installed; pip install 'cotnet[report]'"]
    assert not (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_the_demo_ends_with_its_page(uncut, tmp_path):
    done = run("evaluate.py", f"checkpoint={uncut(1)}/checkpoints/last.pt", "output_dir=evaluation", cwd=tmp_path)
    assert "to look at it: evaluation/report.html" in done.stdout.splitlines()
