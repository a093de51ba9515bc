"""Checkpoints of an earlier version: stored_config.json is the configuration that commit fa06425 wrote into one."""

import json
import pkgutil
from pathlib import Path

import pytest
import torch
from programs import SMALL, STEPS, assert_same_run, run

from cotnet import parts
from cotnet.commands import eval_model
from cotnet.config.compose import compose, flatten
from cotnet.config.continuing import compare
from cotnet.config.moves import DROPPED, MOVED, stored_config
from cotnet.integrity import checksum

STORED = {"config": (Path(__file__).parent / "stored_config.json").read_text()}
OVERRIDES = (
    *("experiment=digits", "augmentation=cotnet", "augmentation.flip=0", "logger=none", "data.root=digits"),
    *("output_dir=run", "train.precision=fp32", "train.epochs=4", "train.max_steps=30", "train.batch_size=60"),
    *("schedule.warmup_epochs=1", "loader.threads=1"),
)


def test_an_earlier_configuration_is_the_present_one_in_current_names():
    assert compare(flatten(stored_config(STORED)), flatten(compose("train", [*OVERRIDES])), "run") == []


def test_a_run_on_wandb_from_before_its_newer_keys_continues():
    config = json.loads(STORED["config"])
    config["logger"] = {"_target_": "cotnet.engine.loggers.WandbLogger", "project": "cotnet", "entity": None}
    config["logger"] |= {"group": None, "tags": [], "mode": "auto"}
    present = compose("train", [*OVERRIDES, "logger=wandb"])
    changes = compare(flatten(stored_config({"config": json.dumps(config)})), flatten(present), "run")
    assert changes == ['logger.project was "cotnet", now null']


def test_moved_names_exist_and_dropped_ones_do_not():
    for old, new in MOVED.items():
        assert pkgutil.resolve_name(new).__name__ == new.rpartition(".")[2] == old.rpartition(".")[2]
    assert not DROPPED & flatten(compose("train", [*OVERRIDES])).keys()


def test_an_earlier_checkpoint_is_evaluated_with_its_own_loader():
    config = eval_model.completed(compose("evaluate", ["checkpoint=x.pth"]), STORED)
    parts.check_loader(config)
    assert config["loader"] == {"_target_": "data.loading.dali.DaliLoader", "threads": 1, "prefetch": 2}
    assert config["data"]["root"] == "digits"


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
