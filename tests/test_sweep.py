"""A sweep as W&B reads it: its file by value, and the commands that W&B's agent makes of it."""

import pytest
import yaml

from cotnet import sweep
from cotnet.config.compose import compose

pytestmark = pytest.mark.slow


def test_wandb_gets_the_same_space(tmp_path, monkeypatch, capsys):
    space = ["optimizer.lr=tag(log,interval(0.01,1))", "train.epochs=int(interval(2,8))", "seed=range(1,4)"]
    space += ["train.label_smoothing=interval(0,0.2)", "backbone=cotnet_small,cotnet50"]
    given = ["experiment=digits", "sweep=tpe", "sweep.trials=12", "output_dir=outputs/s", *space]
    monkeypatch.setattr("sys.argv", ["sweep", "--export", str(tmp_path / "w.yaml"), *given])
    sweep.main()
    assert "wandb sweep" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "w.yaml").read_text()) == {
        "name": "s",
        "program": "train.py",
        "method": "bayes",
        "metric": {"name": "best/val/top1", "goal": "maximize"},
        "parameters": {
            "optimizer.lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
            "train.epochs": {"distribution": "int_uniform", "min": 2, "max": 8},
            "seed": {"values": [1, 2, 3]},
            "train.label_smoothing": {"distribution": "uniform", "min": 0.0, "max": 0.2},
            "backbone": {"values": ["cotnet_small", "cotnet50"]},
        },
        "command": [
            *("${env}", "python", "${program}", "experiment=digits", "output_dir=outputs/s/${oc.env:WANDB_RUN_ID}"),
            "${args_no_hyphens}",
        ],
        "run_cap": 12,
    }


def test_the_words_that_wandbs_agent_makes_of_it_compose(tmp_path, monkeypatch):
    """By W&B's own functions, from values as its server draws them; nothing is asked of a server."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, make_launch_sweep_entrypoint

    space = ["optimizer.lr=tag(log,interval(0.01,1))", "train.epochs=int(interval(2,8))", "train.compile=true,false"]
    given = ["experiment=cotnet50_default", "data.root=x", "sweep=random", "output_dir=outputs/s", *space]
    given.append("backbone.stages=[4],[3,4]")
    monkeypatch.setattr("sys.argv", ["sweep", "--export", str(tmp_path / "w.yaml"), *given])
    sweep.main()
    written = yaml.safe_load((tmp_path / "w.yaml").read_text())
    drawn = {"optimizer.lr": 0.03712, "train.epochs": 5}
    drawn |= {key: written["parameters"][key]["values"][1] for key in ("train.compile", "backbone.stages")}
    args = create_sweep_command_args({"args": {key: {"value": value} for key, value in drawn.items()}})
    words, varied = make_launch_sweep_entrypoint(args, written["command"])
    assert words[:3] == ["${env}", "python", "${program}"]  # the agent's own
    monkeypatch.setenv("WANDB_RUN_ID", "run0abcd")
    config = compose("train", [*words[3:], *varied])
    assert config["output_dir"] == "outputs/s/run0abcd"
    assert (config["optimizer"]["lr"], config["train"]["epochs"]) == (0.03712, 5)
    assert (config["train"]["compile"], config["backbone"]["stages"]) == (False, [3, 4])
    assert config["train"]["batch_size"] == 512  # the recipe's
