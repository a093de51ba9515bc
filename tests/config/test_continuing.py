"""One table says what may change: names, the comparison with a checkpoint and the advice follow from it."""

import pytest

from cotnet.config.compose import compose, flatten
from cotnet.config.continuing import (
    MAY_CHANGE,
    compare,
    default_folder,
    described,
    memory_advice,
    names_run,
    rule,
)
from cotnet.errors import InputError

FLAT = flatten(compose("train", ["experiment=digits", "data.root=x"]))


def another(value):
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else [1] if isinstance(value, list) else f"{value}x"


@pytest.mark.parametrize("key", sorted(key for key in FLAT if rule(key) != "grows" or FLAT[key] is not None))
def test_every_key_may_change_or_is_refused_by_its_name(key):
    changed = {**FLAT, key: another(FLAT[key])}
    if rule(key) is None:
        with pytest.raises(
            InputError, match=rf"\({key} was .*, now .*\); choose another output_dir \(what may change:"
        ):
            compare(FLAT, changed, "run")
    elif key != "output_dir":
        assert [line.partition(" was ")[0] for line in compare(FLAT, changed, "run")] == [key]
    assert names_run(f"{key}=1", root=False) == (rule(key) is None)
    assert names_run(f"{key}=1") == (rule(key) is None or key == "data.root")


def test_the_table_names_real_keys_and_is_told_whole():
    for key in MAY_CHANGE:
        group = key.removesuffix(".*")
        assert group in ("logger", *FLAT) or any(name.startswith(f"{group}.") for name in FLAT)
        assert key in described()


def test_what_grows_does_not_shrink():
    longer = {**FLAT, "train.epochs": FLAT["train.epochs"] + 1, "train.max_minutes": None}
    assert compare({**FLAT, "train.max_minutes": 1.0}, longer, "run") == [
        "train.epochs was 20, now 21",
        "train.max_minutes was 1.0, now null",
    ]
    with pytest.raises(InputError, match=r"train\.epochs was 21, now 20"):
        compare(longer, FLAT, "run")


def test_a_default_warmup_follows_the_length_of_the_run():
    """Of version 0.1, too, where the default stood as a number: 5, and 2 in the recipe of the digits."""
    before = {**FLAT, "schedule.warmup_epochs": 2}
    assert compare(before, FLAT, "run") == []
    short = {**FLAT, "train.epochs": 1}
    assert compare(short, FLAT, "run") == ["train.epochs was 1, now 20"]
    with pytest.raises(InputError, match=r"schedule\.warmup_epochs was 3, now null"):
        compare({**FLAT, "schedule.warmup_epochs": 3}, FLAT, "run")


def test_a_run_is_found_in_the_folder_that_an_earlier_version_named(tmp_path):
    overrides = ["backbone=cotnet50", "train.epochs=3", "launch.ranks=2", "data.root=x"]
    assert default_folder(tmp_path, overrides, root=False) == tmp_path / "backbone-cotnet50"
    assert default_folder(tmp_path, overrides, root=True) == tmp_path / "backbone-cotnet50__data.root-x"
    for name in ("backbone-cotnet50__data.root-x", "backbone-cotnet50__data.root-x__train.epochs-3"):  # the next, 0.1
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        assert default_folder(tmp_path, overrides, root=False) == tmp_path / name


def test_advice_for_a_begun_run_is_what_may_still_change():
    assert memory_advice(FLAT, begun=False) == (
        "lower train.batch_size=64 or lower data.eval_batch_size=90 or set train.checkpointing=[1,2] or "
        "set train.accumulation=2"
    )
    assert memory_advice(FLAT, begun=True) == "lower data.eval_batch_size=90 or set train.checkpointing=[1,2]"
