"""What a sweep varies, by value: Hydra's grammar, names of trials."""

import pytest

from cotnet.config.build import typed
from cotnet.errors import InputError
from cotnet.sweeps.space import Parameter, SweepSettings, grid, name_trials, quoted, read, read_space

from .by_hand import GRID


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
    assert one("lr=interval(0.001,1)").override(0.123456789) == "lr=0.123457"
    assert one("lr=interval(0.12345612,1)").override(0.12345612) == "lr=0.12345612"
    assert one("n=int(interval(1,8))").override(3) == "n=3"
    assert one("s=range(0,0.31,0.1)").override(0.30000000000000004) == "s=0.3"
    assert one("b=choice(x,y)").override("x") == "b=x"


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
