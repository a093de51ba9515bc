"""What a sweep varies, by value: Hydra's grammar, names of trials, Optuna's and W&B's form of the same space."""

import optuna
import pytest
import yaml

from cotnet import sweep
from cotnet.config.build import typed
from cotnet.config.compose import compose
from cotnet.errors import InputError
from cotnet.sweeps.search import distribution
from cotnet.sweeps.space import Parameter, SweepSettings, grid, name_trials, quoted, read, read_space

GRID = {"sampler": "grid", "space": {}, "target": "val/top1", "direction": "maximize", "parallel": 1, "retry": False}
GRID |= {"trials": None, "startup": 8, "seed": 0}


def one(override: str) -> Parameter:
    (parameter,) = read([override])[1]
    return parameter


def test_values_ranges_and_intervals_are_told_apart():
    shared, varied = read(["experiment=digits", "seed=1,2,2", "train.epochs=3", "a=range(1,6,2)", "seed=4,5"])
    assert shared == ["experiment=digits", "train.epochs=3"]
    assert [(p.key, p.values) for p in varied] == [("a", ("1", "3", "5")), ("seed", ("4", "5"))]  # the last word counts
    assert one("a='x=1',null,[1,2]").values == ("'x=1'", "null", "[1,2]")
    log = one("optimizer.lr=tag(log,interval(0.001,1))")
    assert (log.low, log.high, log.log, log.integer, log.values) == (0.001, 1.0, True, False, ())
    assert one("n=int(interval(1,8))").integer
    steps = one("s=range(0,0.31,0.1)")
    assert (steps.low, steps.high, steps.step, steps.values) == (0.0, 0.3, 0.1, ("0.0", "0.1", "0.2", "0.3"))


def test_a_value_is_written_with_six_digits_within_its_bounds():
    assert one("lr=interval(0.001,1)").written(0.123456789) == "lr=0.123457"
    assert one("lr=interval(0.12345612,1)").written(0.12345612) == "lr=0.12345612"
    assert one("n=int(interval(1,8))").written(3) == "n=3"
    assert one("s=range(0,0.31,0.1)").written(0.30000000000000004) == "s=0.3"
    assert one("b=choice(x,y)").written("x") == "b=x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a=interval(3,1)", "a: the range from 3 to 1 is empty; "),
        ("a=interval(1,1)", "a: the range from 1 to 1 is empty; "),
        ("a=range(3,1)", "a=range(3,1): the range is empty; "),
        ("a=tag(log,interval(0,1))", "a: a logarithmic range begins above 0, not at 0"),
        ("a=glob(*)", "a=glob(*) cannot be swept; "),
    ],
)
def test_what_cannot_be_swept_is_one_line(override, message):
    with pytest.raises(InputError) as error:
        read([override])
    assert str(error.value).startswith(message)


def test_a_space_says_what_to_try():
    assert read_space({"a.b": "interval(1,2)", "c": "1, 2"}) == ["a.b=interval(1,2)", "c=1, 2"]
    for value in (5, "x", "interval(1"):
        with pytest.raises(InputError, match=r"^sweep\.space: a=.* does not say what to try; write 1,2 or choice"):
            read_space({"a": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "tpee"}, "sweep.sampler=tpee is unknown; did you mean tpe?"),
        ({"sampler": "tpe"}, "sweep.trials=null, but sweep.sampler=tpe wants to know when to end; set sweep.trials=N"),
        ({"trials": 3}, "sweep.trials=3 is for a search; a grid runs every combination (sweep=tpe searches)"),
        ({"parallel": 0}, "sweep.parallel=0 must be at least 1"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(InputError) as error:
        typed(SweepSettings, GRID | change, "sweep")
    assert str(error.value) == message


def test_a_grid_is_every_combination_and_wants_values():
    parameters = read(["a=1,2", "b=x,y"])[1]
    assert grid(parameters) == [("a=1", "b=x"), ("a=1", "b=y"), ("a=2", "b=x"), ("a=2", "b=y")]
    with pytest.raises(InputError, match=r"^a: a grid cannot visit every number of an interval; "):
        grid(read(["a=interval(1,2)"])[1])


def test_a_trial_keeps_its_name_and_no_two_share_one():
    first = name_trials([("a=x/y", "b=1")], ())
    assert first[0].name == "a-x_y__b-1"
    both = name_trials([("a=x_y", "b=1"), ("b=1", "a=x/y")], first)
    assert both[1] == first[0]  # the same overrides in another order
    assert both[0].name.startswith("a-x_y__b-1-")
    assert len({trial.name for trial in both}) == 2
    assert name_trials([("a=x_y", "b=1")], first) == both[:1]


def test_text_is_quoted_where_the_grammar_needs_it():
    assert quoted("output_dir", "outputs/a-1") == "output_dir=outputs/a-1"
    assert quoted("output_dir", "it's, (1)") == "output_dir='it\\'s, (1)'"


def test_optuna_gets_the_same_values():
    d = optuna.distributions
    pairs = {
        "a=choice(x,y)": d.CategoricalDistribution(("x", "y")),
        "a=interval(0.1,2)": d.FloatDistribution(0.1, 2.0),
        "a=tag(log,interval(0.1,2))": d.FloatDistribution(0.1, 2.0, log=True),
        "a=int(interval(1,8))": d.IntDistribution(1, 8),
        "a=tag(log,int(interval(1,8)))": d.IntDistribution(1, 8, log=True),
        "a=range(1,9,2)": d.IntDistribution(1, 7, step=2),
        "a=range(0,0.31,0.1)": d.FloatDistribution(0.0, 0.3, step=0.1),
    }
    assert {text: distribution(one(text)) for text in pairs} == pairs


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
        "metric": {"name": "val/top1", "goal": "maximize"},
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lrr=1,2"], "error: optimizer.lrr is not a setting; did you mean optimizer.lr?"),
        (["seed=1,2", "logger=none"], "error: logger=none in a W&B sweep"),
        (["optimizer.lr=interval(0.1,1)"], "error: optimizer.lr: a grid cannot visit every number of an interval; "),
        (["sweep=tpe"], "error: sweep.sampler=tpe has nothing to vary"),
        (["sweep.seed=1,2"], "error: sweep.seed is the sweep's own; give it one value"),
        (["sweep=tpe", "seed=tag(log,int(interval(1,9)))"], "error: seed: W&B has no logarithmic range of integers"),
        (["seed=1,2", "backbone=cotnet50,cotnet51"], "error: backbone=cotnet51 is unknown; did you mean cotnet50"),
    ],
)
def test_bad_spaces_are_one_line(overrides, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep", "--export", str(tmp_path / "w.yaml"), "data=digits", *overrides])
    with pytest.raises(SystemExit) as end:
        sweep.main()
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(message)
    assert line.count("\n") == 1
    assert not (tmp_path / "w.yaml").exists()
