import subprocess
import sys

from programs import ROOT, environment

from cotnet.commands.reference import CONTRACT, contract, declared
from cotnet.config.compose import compose, flatten


def test_the_contract_holds_the_declared_settings():
    """`python -m cotnet.commands.reference` writes them."""
    assert CONTRACT.read_text() == contract(CONTRACT.read_text())


def test_every_key_of_the_sections_is_declared_and_no_other():
    config = flatten(compose("train", ["data.root=x"]))
    sections = ("train.", "data.", "launch.", "checkpoint.", "evaluation.")
    keys = {key for key in config if "." not in key or key.startswith(sections)}
    assert {key for key, _ in declared()} == keys


def test_help_shows_values_and_meanings():
    command = [sys.executable, "train.py", "--help", "experiment=pvt_tiny", "train.epochs=7"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment() | {"COLUMNS": "200"}, capture_output=True, text=True, check=True
    )
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "train.epochs=7 passes over the training set; at least 1" in lines
    assert "train.clip_value=null largest absolute entry of the gradient; positive or null" in lines
    assert any(line.startswith("backbone: botnet101, botnet152") for line in lines)
    assert "backbone._target_=cotnet.models.pvt_tiny" in lines
