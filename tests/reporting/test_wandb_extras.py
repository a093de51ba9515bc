"""What a run tells W&B when it is asked for more: gradients, system metrics, code; the real offline file read back."""

import numpy as np
import pytest
import torch
from programs import SMALL, assert_same_run, checkpoint, run_process, start
from wandb_process import files

from cotnet.reporting.wandb_file import difference, id_of, read_start, values_of, wandb_records
from cotnet.reporting.wandb_watch import copied, histograms, is_watched

MORE = ("logger.watch=2", "logger.system_metrics=true", "logger.save_code=true", "logger.mode=offline")


def test_a_histogram_holds_every_finite_gradient():
    model = torch.nn.Linear(3, 2)
    model(torch.ones(4, 3)).sum().backward()
    model.bias.grad[0] = torch.inf
    copies = copied(model)
    model.weight.grad.zero_()
    row = histograms({"step": 4} | copies)
    assert row["step"] == 4
    counts = row["gradients/weight"].histogram
    assert (sum(counts), len(counts)) == (6, 64)
    assert np.isclose(row["gradients/weight"].bins[np.argmax(counts)], 4, atol=0.1)  # not the zeros of later
    assert sum(row["gradients/bias"].histogram) == 1


@pytest.mark.slow
@pytest.mark.long
def test_a_watched_run_is_the_same_run(digits, tmp_path):
    given = [*(word for word in SMALL if word != "logger=none"), f"data.root={digits}", "train.max_steps=4"]
    often = {"WANDB_X_STATS_SAMPLING_INTERVAL": "0.1"}
    process = start("train.py", *given, *MORE, "output_dir=watched", cwd=tmp_path, variables=often)
    output, errors = process.communicate(timeout=280)
    assert (process.returncode, errors) == (0, ""), output
    run_process("train.py", *given, "logger=none", "output_dir=plain", cwd=tmp_path)
    assert_same_run(tmp_path / "watched", tmp_path / "plain")
    (file,) = files(tmp_path / "watched")
    assert difference(tmp_path / "watched", id_of(file)) == {"missing": 0, "extra": 0}
    kinds = {record.WhichOneof("record_type") for record in wandb_records(file)}
    assert "stats" in kinds
    rows = [values_of(record.history.item) for record in wandb_records(file) if record.HasField("history")]
    watched = [row for row in rows if is_watched(row)]
    assert watched
    assert {row["step"] for row in watched} <= {2, 4}  # a step is left out while the last one waits
    kinds = {key: kind for key, kind in watched[0].items() if key.endswith("/_type")}
    model = checkpoint(tmp_path / "plain")["model"]
    assert {key.removeprefix("gradients/").removesuffix("/_type") for key in kinds} < model.keys()
    assert set(kinds.values()) == {"histogram"}
    (code,) = (record.artifact for record in wandb_records(file) if record.HasField("artifact"))
    assert (code.name, code.type) == ("source-cotnet", "source")
    assert {"train.py", "cotnet/parts.py", "conf/train.yaml"} <= {entry.path for entry in code.manifest.contents}
    config = read_start(file).config
    assert config["recipe"] == "digits"
    assert set(MORE) < set(config["overrides"])
