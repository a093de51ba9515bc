"""Checkpoints of an earlier version: stored_config.json is the configuration that commit fa06425 wrote into one."""

import json
import pkgutil
from pathlib import Path

import pytest
import torch
from programs import SMALL, STEPS, assert_same_run, run

from cotnet import parts
from cotnet.commands import eval_model
from cotnet.config import run_folder
from cotnet.config.compose import compose, flatten
from cotnet.config.continuing import as_begun, compare
from cotnet.config.moves import DROPPED, MOVED, stored_config
from cotnet.engine import checkpoints
from cotnet.errors import InputError
from cotnet.integrity import checksum

STORED = {"config": (Path(__file__).parent / "stored_config.json").read_text()}
OVERRIDES = (
    *("experiment=digits", "augmentation=cotnet", "augmentation.flip=0", "logger=none", "data.root=digits"),
    *("output_dir=run", "train.precision=fp32", "train.epochs=4", "train.max_steps=30", "train.batch_size=60"),
    *("schedule.warmup_epochs=1", "loader.threads=1"),
)


def test_an_earlier_configuration_is_the_present_one_in_current_names():
    stored = stored_config(STORED)
    assert compare(flatten(stored), flatten(as_begun(compose("train", [*OVERRIDES]), stored)), "run") == []


def test_a_run_on_wandb_from_before_its_newer_keys_continues():
    config = json.loads(STORED["config"])
    config["logger"] = {"_target_": "cotnet.engine.loggers.WandbLogger", "project": "cotnet", "entity": None}
    config["logger"] |= {"group": None, "tags": [], "mode": "auto"}
    stored = stored_config({"config": json.dumps(config)})
    present = as_begun(compose("train", [*OVERRIDES, "logger=wandb"]), stored)
    changes = compare(flatten(stored), flatten(present), "run")
    assert changes == ['logger.project was "cotnet", now null']


def test_only_backbones_that_dilate_get_an_output_stride():
    found = {}
    for name in ("cotnet.models.cotnet50", "cotnet.models.pvt_tiny", "cotnet.models.timm_model", "mine.resnet50"):
        config = {**json.loads(STORED["config"]), "backbone": {"_target_": name}}
        found[name.rpartition(".")[2]] = stored_config({"config": json.dumps(config)})["backbone"].get("output_stride")
    assert found == {"cotnet50": 32, "pvt_tiny": None, "timm_model": None, "resnet50": None}


def test_moved_names_exist_and_dropped_ones_do_not():
    for old, new in MOVED.items():
        assert pkgutil.resolve_name(new).__name__ == new.rpartition(".")[2] == old.rpartition(".")[2]
    assert not DROPPED & flatten(compose("train", [*OVERRIDES])).keys()


def test_an_earlier_checkpoint_is_evaluated_with_its_own_loader():
    config = eval_model.completed(compose("evaluate", ["checkpoint=x.pth"]), STORED)
    parts.check_loader(config)
    loader = {"_target_": "data.loading.dali.DaliLoader", "threads": 1, "prefetch": 2, "device": "auto"}
    assert config["loader"] == loader
    assert config["data"]["root"] == "digits"


def test_a_run_from_before_auto_continues_with_its_own_formats(tmp_path):
    """Earlier versions stored true or false; `auto`, today's default, then means that."""
    stored = json.loads(STORED["config"])
    assert "deterministic" not in stored["train"]
    stored["train"] |= {"channels_last": True, "compile": False}
    progress = {"epoch": 1, "step": 3, "seconds": 1.0, "evaluated": 0, "best": {}}
    content = {"format": checkpoints.FORMAT, "config": json.dumps(stored), "progress": progress, "ranks": [{}]}
    checkpoints.save(tmp_path / "checkpoints" / "last.pt", content | {"image_set": "x"})
    config = compose("train", [*OVERRIDES])
    assert (config["train"]["channels_last"], config["train"]["compile"]) == ("auto", "auto")
    taken = run_folder.taken_up(tmp_path, config, "x")
    assert (taken["train"]["channels_last"], taken["train"]["compile"]) == (True, False)
    other = compose("train", [*OVERRIDES, "train.compile=max-autotune"])
    with pytest.raises(InputError, match=r'train\.compile was false, now "max-autotune"'):
        run_folder.taken_up(tmp_path, other, "x")


@pytest.mark.slow
def test_a_run_of_the_earlier_version_continues_and_is_evaluated(uncut, digits, tmp_path):
    overrides = [*SMALL, f"data.root={digits}", "launch.ranks=1", "output_dir=run"]
    run("train.py", *overrides, f"train.max_steps={STEPS}", cwd=tmp_path)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        for old, new in MOVED.items():
            checkpoint["config"] = checkpoint["config"].replace(f'"{new}"', f'"{old}"')
        assert json.loads(checkpoint["config"])["loader"]["_target_"] == "data.dali.DaliLoader"
        del checkpoint["checksum"]
        torch.save({**checkpoint, "checksum": checksum(checkpoint)}, path)
    done = run("evaluate.py", "checkpoint=run", "output_dir=before", cwd=tmp_path)
    assert "on 50 images" in done.stdout
    done = run("train.py", *overrides, cwd=tmp_path)
    assert "continuing run at epoch 1, step 4" in done.stdout
    assert_same_run(uncut(1), tmp_path / "run")
