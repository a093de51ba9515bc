"""`--help` and docs/contract.md say what each setting means, from where it is declared."""

import subprocess
import sys
from itertools import zip_longest

import pytest
from programs import ROOT, environment

from cotnet.commands.reference import CONTRACT, contract, declared, help_page, meanings, members
from cotnet.config.build import TARGETS
from cotnet.config.compose import compose, flatten, unresolved

CHOSEN = {group: members(group) for group in (*TARGETS, "data", "sweep", "suite")}
# Each member of each group once: one member of every group at a time.
TURNS = [
    [f"{group}={name}" for group, name in zip(CHOSEN, names, strict=True) if name]
    for names in zip_longest(*CHOSEN.values())
]


@pytest.mark.slow
def test_the_contract_holds_the_declared_settings():
    """`python -m cotnet.commands.reference` writes them."""
    assert CONTRACT.read_text() == contract(CONTRACT.read_text())


def test_every_key_of_the_sections_is_declared_and_no_other():
    config = flatten(compose("train", ["data.root=x"]))
    sections = ("train.", "data.", "launch.", "checkpoint.", "evaluation.")
    keys = {key for key in config if "." not in key or key.startswith(sections)}
    assert declared().keys() == keys | {"plugins"}  # which is left out while it is empty


@pytest.mark.slow
@pytest.mark.parametrize("overrides", TURNS)
def test_every_setting_of_every_member_has_a_meaning(overrides):
    of_train = tuple(group for group in CHOSEN if group != "suite")
    of_look = ("backbone", "data", "loader")
    for program, groups in (
        ("train", of_train),
        ("evaluate", (*of_look, "suite")),
        ("look", of_look),
        ("export", of_look),
    ):
        given = [override for override in overrides if override.partition("=")[0] in groups]
        if program != "train" and "loader=dense" in given:  # a detector's checkpoint brings its loader
            given.remove("loader=dense")
        config = unresolved(program, given)
        known = meanings(program, config)
        assert known.keys() == flatten(config).keys()
        assert [key for key, text in known.items() if not text] == []


def words(page: str) -> list[str]:
    return [" ".join(line.split()) for line in page.splitlines()]


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


@pytest.mark.slow
def test_help_shows_values_and_meanings():
    command = [sys.executable, "train.py", "--help", "experiment=pvt_tiny", "train.epochs=7", "optimizer.lr=0.1"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment() | {"COLUMNS": "200"}, capture_output=True, text=True, check=True
    )
    lines = words(done.stdout)
    assert "Settings, changed by key=value:" in lines
    assert "train.epochs=7 passes over the training set; at least 1" in lines
    assert "train.clip_value=null largest absolute entry of the gradient; positive or null" in lines
    assert any(line.startswith("backbone: aa_resnet50, botnet101, botnet152") for line in lines)
    assert "backbone._target_=cotnet.models.pvt_tiny import path of what the other keys go to" in lines
    assert "backbone.image_size=224 nominal height and width of the position tables, in pixels; at least 1" in lines
    assert any(line.startswith("optimizer.lr=0.1 peak learning rate; default: ") for line in lines)
    assert "augmentation.mixup=0.8 alpha of lambda's Beta(alpha, alpha); 0, which is off, or from 0.01 to 100" in lines


def test_help_of_a_sweep(wide):
    lines = words(help_page("train", ["sweep=sgd", "seed=1,2", "+optimizer.dampening=0.1"], "About."))
    assert any(line.startswith("sweep.space.optimizer.momentum=choice(0.8, 0.9, 0.95) what varies") for line in lines)
    assert any(line.startswith("seed=1,2 0 to 2**63 - 1") for line in lines)
    assert "optimizer.dampening=0.1 a setting of torch.optim.SGD" in lines


def test_help_of_an_evaluation(wide):
    lines = words(help_page("evaluate", ["backbone=timm", "+backbone.drop_rate=0.1"], "About."))
    assert "loader.threads=null CPU threads per rank; from 1 to 1024" in lines
    assert "backbone.drop_rate=0.1 a setting of the library's constructor" in lines
    assert any(line.startswith("fuse=false fold BatchNorm into the convolution before it") for line in lines)


def test_help_of_what_cannot_be_imported(wide):
    lines = words(help_page("train", ["loader._target_=data.loading.dali.Other"], "About."))
    assert any("loader._target_ 'data.loading.dali.Other' cannot be imported: " in line for line in lines)
    assert "train.epochs=100 passes over the training set; at least 1" in lines
