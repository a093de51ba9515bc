"""evaluate.py with several checkpoints: comparison, mean of weights; what ranks get of a checkpoint."""

import json
import pickle
import shutil

import pytest
import torch
from miniature import figures
from programs import checkpoint, metrics, run

from cotnet import compare
from cotnet.commands import eval_model, evaluate
from cotnet.commands.eval_worker import Job, Leaf, measure
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.signals import StopRequest
from cotnet.evaluation.metrics import metrics as table_metrics
from cotnet.models.weights import to_bytes

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_two_checkpoints_are_compared(uncut, digits, tmp_path, capsys):
    """A list, a folder of runs; comparison.json, and the same from the tables alone."""
    for name in ("one", "two"):
        shutil.copytree(uncut(1) / "checkpoints", tmp_path / "runs" / name / "checkpoints")
    last = uncut(1) / "checkpoints" / "last.pt"
    weaker = checkpoint(uncut(1))
    weaker["ema"] = {key: value * 0.5 if value.is_floating_point() else value for key, value in weaker["ema"].items()}
    del weaker["checksum"]
    torch.save(weaker, tmp_path / "weaker.pt")
    run("evaluate.py", f"checkpoint=[{last},weaker.pt]", "output_dir=out", cwd=tmp_path)
    names = sorted(path.parent.name for path in (tmp_path / "out").glob("*/metrics.json"))
    assert len(names) == 2
    pages = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.html"))
    assert pages == sorted(["report.html", *(f"{name}/report.html" for name in names)])
    (found,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparisons"]
    top1 = [figures(tmp_path / "out" / name)["top1"] for name in (found["a"], found["b"])]
    assert found["top1"]["difference"] == pytest.approx(top1[0] - top1[1])
    assert found["top1"]["only_a_right"] - found["top1"]["only_b_right"] == pytest.approx(
        found["top1"]["difference"] / 2
    )
    assert "over images" in found["intervals"]
    tables = [str(tmp_path / "out" / name / "predictions.csv") for name in (found["a"], found["b"])]
    compare.main([*tables, "--out", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())["comparisons"][0]
    assert {key: again[key] for key in ("top1", "top5", "flipped")} == {
        key: found[key] for key in ("top1", "top5", "flipped")
    }
    assert "McNemar p =" in capsys.readouterr().out
    run("evaluate.py", "checkpoint=runs", f"data.root={digits}", "output_dir=same", cwd=tmp_path)
    (found,) = json.loads((tmp_path / "same" / "comparison.json").read_text())["comparisons"]
    assert (found["a"], found["b"], found["flipped"]) == ("one", "two", [])
    done = run("evaluate.py", "checkpoint=runs", "predictions=[]", "output_dir=none", cwd=tmp_path, code=2)
    assert "several checkpoints are compared by their predictions.csv; add csv" in done.stderr
    other = tmp_path / "out" / names[0] / "per_class.csv"
    with pytest.raises(SystemExit, match="2"):
        compare.main([tables[0], str(other)])
    assert "not a whole table of predictions" in capsys.readouterr().err


@pytest.mark.long
def test_mean_of_checkpoints(uncut, digits, tmp_path):
    """Two equal files average to themselves, with new BatchNorm statistics; on any number of ranks the same."""
    last = uncut(1) / "checkpoints" / "last.pt"
    shutil.copy(last, tmp_path / "copy.pt")
    other = checkpoint(uncut(1))
    other["ema"] = {key: value + 1 if value.is_floating_point() else value for key, value in other["ema"].items()}
    del other["checksum"]
    torch.save(other, tmp_path / "other.pt")
    found = {}
    for ranks, average in ((1, "average=true"), (2, "average.images=90")):  # all images
        given = [f"checkpoint=[{last},copy.pt]", average, f"launch.ranks={ranks}", f"output_dir=mean{ranks}"]
        run("evaluate.py", *given, cwd=tmp_path)
        found[ranks] = (tmp_path / f"mean{ranks}" / "predictions.csv").read_bytes()
    assert found[1] == found[2]
    assert "the mean of" in figures(tmp_path / "mean1")["checkpoint"]
    config = eval_model.separated(compose("evaluate", [f"checkpoint={last}"]))
    model, first = eval_model.read(config, [last, tmp_path / "other.pt"]).model, checkpoint(uncut(1))["ema"]
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, first[key] + 0.5)


def test_ranks_get_the_weights_and_do_not_read_the_checkpoint(uncut, digits):
    """The parent reads it once; what a rank gets is enough, wherever the file is by then."""
    last = uncut(1) / "checkpoints" / "last.pt"
    config, paths = evaluate.checked(compose("evaluate", [f"checkpoint={last}", "output_dir=x"]))
    read = eval_model.read(config, paths)
    inputs = {"settings": {}}
    leaf = Leaf(set="val", size=32, folder="x", inputs=inputs)
    gone = {**read.config, "checkpoint": "/nowhere"}
    job = Job(config=gone, leaves=[leaf], weights=to_bytes(read.model), classes=read.classes, average=None)
    job = pickle.loads(pickle.dumps(job))  # as a process that is started gets it
    ((_, found),) = measure(job, Ranks(rank=0, world_size=1, device=torch.device("cpu")), StopRequest([]))
    logged = [record for record in metrics(uncut(1)) if "val/top1" in record][-1]
    assert table_metrics(found.predictions)["top1"] == logged["val/top1_ema"]
    assert read.classes == tuple("0123456789")
