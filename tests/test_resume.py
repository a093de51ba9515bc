"""A run that is cut, anywhere and however, and continued is the run that was never cut, to the last bit."""

import json
import math
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from programs import SMALL, STEPS, assert_same_run, assert_same_weights, checkpoint, metrics, run, start

from cotnet.verify_resume import differences

pytestmark = pytest.mark.slow
LONG = pytest.mark.long


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=LONG)])
def test_resume_at_an_epoch_end_changes_nothing(uncut, digits, ranks, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", f"launch.ranks={ranks}", "output_dir=run"]
    run("train.py", *overrides, f"train.max_steps={STEPS}", cwd=tmp_path)
    assert checkpoint(tmp_path / "run")["progress"]["epoch"] == 1
    done = run("train.py", *overrides, cwd=tmp_path)
    assert "continuing run at epoch 1, step 4" in done.stdout
    starts = [json.loads(line) for line in (tmp_path / "run" / "environment.jsonl").read_text().splitlines()]
    assert [(start["step"], start["ranks"]) for start in starts] == [(0, ranks), (STEPS, ranks)]
    assert_same_run(uncut(ranks), tmp_path / "run")


def alive(group: int) -> list[str]:
    listing = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def wait_until_gone(group: int) -> None:
    """No process is left; multiprocessing's tracker ends after its parent, a killed parent's ranks after their step."""
    deadline = time.monotonic() + 30
    while alive(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(group)


@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 2, marks=LONG), pytest.param(signal.SIGKILL, 2, marks=LONG)],
)
def test_cut_anywhere_and_resumed(uncut, digits, number, ranks, tmp_path):
    """A signal at whatever step it arrives (SIGKILL: from the last every_steps checkpoint on)."""
    overrides = [*SMALL, f"data.root={digits}", f"launch.ranks={ranks}", "checkpoint.every_steps=1", "output_dir=run"]
    process = start("train.py", *overrides, cwd=tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    group = os.getpgid(process.pid)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # Ctrl-C reaches the whole group
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 75), out + err
    if number != signal.SIGKILL:
        assert "interrupted; the same command continues run" in out
        assert "Traceback" not in err
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    wait_until_gone(group)
    run("train.py", *overrides, cwd=tmp_path)
    assert_same_run(uncut(ranks), tmp_path / "run")


LAMB = ["optimizer=lamb", "optimizer.layer_decay=0.8", "train.loss=bce", "train.clip_value=0.01"]
LAMB += ["schedule=linear", "schedule.cooldown_epochs=1", "schedule.warmup_epochs=0"]


@pytest.mark.parametrize(("precision", "more"), [("bf16", LAMB), pytest.param("fp16", (), marks=LONG)])
def test_mixed_precision_resumes_in_mid_epoch(precision, more, digits, tmp_path):
    """Autocast, the loss scaler, dropout, drop path and every random augmentation continue where they were; so do LAMB,
    rates by layer, a sigmoid per class, clipping by value and a cool-down."""
    overrides = [*SMALL, f"data.root={digits}", f"train.precision={precision}", "augmentation=advanced"]
    overrides += ["backbone.width=8", "backbone.drop_path=0.2", "backbone.dropout=0.2", "train.accumulation=2", *more]
    run("train.py", *overrides, "output_dir=uncut", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", "train.max_steps=3", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", cwd=tmp_path)
    assert_same_weights(tmp_path / "uncut", tmp_path / "cut")
    one, other = checkpoint(tmp_path / "uncut"), checkpoint(tmp_path / "cut")
    assert one["scaler"] == other["scaler"]
    assert bool(one["scaler"]) == (precision == "fp16")
    assert len(one["optimizer"]["param_groups"]) == (16 if more else 2)  # of eight layers, with weight decay or without
    assert (metrics(tmp_path / "uncut")[-2]["train/lr"] == 0.0) == bool(more)


@pytest.mark.long
def test_memory_format_and_checkpointing_resume_and_evaluate_alike(digits, tmp_path):
    """Recomputation changes no number and may change within a run; evaluate.py takes the memory format."""
    overrides = [*SMALL, f"data.root={digits}", "train.channels_last=true", "backbone.drop_path=0.2"]
    overrides += ["train.epochs=1", "schedule.warmup_epochs=0"]
    run("train.py", *overrides, "output_dir=kept", cwd=tmp_path)
    overrides += ["train.checkpointing=[1,3]", "output_dir=cut"]
    run("train.py", *overrides, "train.max_steps=3", cwd=tmp_path)
    run("train.py", *overrides, "train.checkpointing=[2]", cwd=tmp_path)
    assert_same_weights(tmp_path / "kept", tmp_path / "cut")
    run("evaluate.py", "checkpoint=cut/checkpoints/last.pt", "weights=raw", "output_dir=evaluation", cwd=tmp_path)
    logged = [record for record in metrics(tmp_path / "cut") if "val/top1" in record][-1]
    result = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert result["loss"] == logged["val/loss"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a whole net takes minutes to compile without a GPU")
def test_compiled_run_resumes_and_is_evaluated_uncompiled(digits, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", "train.compile=true", "train.channels_last=true"]
    overrides += ["train.epochs=1", "schedule.warmup_epochs=0", "backbone.dropout=0.2"]
    run("train.py", *overrides, "output_dir=uncut", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", "train.max_steps=3", cwd=tmp_path)
    run("train.py", *overrides, "output_dir=cut", cwd=tmp_path)
    assert_same_weights(tmp_path / "uncut", tmp_path / "cut")
    logged = [record for record in metrics(tmp_path / "cut") if "val/top1" in record][-1]
    for name, tolerance in (("false", 0), ("true", 1e-3)):
        given = ["checkpoint=cut/checkpoints/last.pt", "weights=raw", f"compile={name}", f"output_dir={name}"]
        run("evaluate.py", *given, "launch.ranks=1", cwd=tmp_path)
        result = json.loads((tmp_path / name / "metrics.json").read_text())
        assert result["loss"] == pytest.approx(logged["val/loss"], rel=tolerance, abs=0)


def test_the_smallest_difference_is_found(uncut, tmp_path):
    """What the comparison of runs is worth: one weight's last bit, one logged figure."""
    shutil.copytree(uncut(1), tmp_path / "run")
    assert differences(uncut(1), tmp_path / "run") == []
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    kept = torch.load(path, weights_only=True)
    del kept["checksum"]
    weight = kept["ema"]["fc.weight"].view(-1)
    weight[7] = torch.nextafter(weight[7], torch.tensor(1.0))
    torch.save(kept, path)
    log = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[1]["train/loss"] = math.nextafter(lines[1]["train/loss"], 0)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert differences(uncut(1), tmp_path / "run") == ["best.pt: ema.fc.weight", "metrics.jsonl: step 4"]
