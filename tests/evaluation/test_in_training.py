"""Evaluation during training: its schedule, and other test sets beside the val split."""

import miniature
import pytest
from miniature import figures, fill
from programs import SMALL, checkpoint, metrics, run

from cotnet.evaluation.suites import synsets

pytestmark = pytest.mark.slow


def test_evaluation_schedule_and_extra_sets_of_a_run(digits, tmp_path):
    """Every second epoch and at the end; without averaging there is one copy of the weights."""
    given = [*SMALL, f"data.root={digits}", "train.epochs=5", "evaluation.every=2", "train.ema_decay=0"]
    given.append("checkpoint.keep_every=3")
    run("train.py", *given, "output_dir=run", cwd=tmp_path)
    evaluated = [record["epoch"] for record in metrics(tmp_path / "run") if "val/top1" in record]
    assert evaluated == [2, 4, 5]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("epoch_*")] == ["epoch_0003.pt"]
    saved = checkpoint(tmp_path / "run")
    assert saved["classes"] == list("0123456789")
    assert all(
        saved["ema"][key].data_ptr() == tensor.data_ptr() for key, tensor in saved["model"].items() if tensor.numel()
    )
    done = run("train.py", *given, "evaluation.extra={v2: 1}", "output_dir=other", cwd=tmp_path, code=2)
    assert "evaluation.extra is for ImageNet's 1,000 classes; data.num_classes=10" in done.stderr


@pytest.mark.long
def test_extra_sets_are_logged_beside_the_validation(tmp_path):
    """A run of ImageNet's 1,000 classes, one image each, and two miniature sets; the last record equals evaluate.py."""
    image = miniature.pool(64)[0]
    for split in ("train", "val"):
        for number, name in enumerate(synsets()):
            path = tmp_path / "imagenet" / split / name / "x.png"
            path.parent.mkdir(parents=True)
            miniature.pool(64)[number % 64].resize((32, 32)).save(path) if split == "train" else image.resize(
                (32, 32)
            ).save(path)
    fill(tmp_path / "sketch", lambda one: synsets()[one], images=6)
    fill(tmp_path / "imagenetv2", str, images=6)
    given = [
        *SMALL, "data=imagenet", "data.root=imagenet", "data.image_size=32", "data.eval_size=32", "train.epochs=2",
        "train.batch_size=100", "train.max_steps=4", "evaluation.extra={v2: 1, sketch: 7}", "evaluation.root=.",
    ]  # fmt: skip
    run("train.py", *given, "output_dir=run", cwd=tmp_path)
    record = [one for one in metrics(tmp_path / "run") if "val/top1" in one][-1]
    assert {"val/v2/top1", "val/v2/top5_ema", "val/sketch/top1", "val/sketch/top1_ema"} <= record.keys()
    for name in ("v2", "sketch"):
        run(
            "evaluate.py",
            "checkpoint=run/checkpoints/last.pt",
            f"suite={name}",
            "suite.root=.",
            f"output_dir={name}",
            cwd=tmp_path,
        )
        found = figures(tmp_path / name)
        assert {key: found[key] for key in ("top1", "top5")} == {
            key: record[f"val/{name}/{key}_ema"] for key in ("top1", "top5")
        }
