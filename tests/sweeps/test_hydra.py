"""What Hydra's own documentation says of sweeps holds here: glob, hydra.sweeper.params, another main configuration."""

import json

import pytest
from programs import SMALL, run, run_process

from cotnet.errors import InputError
from cotnet.sweeps.command import compose_plan

MAIN = """
defaults: [train, _self_]
hydra:
  sweeper:
    params:
      backbone: glob(resnet_sm*), cotnet_small
      seed: 3
"""


def test_glob_chooses_members_of_a_group():
    (parameter,) = compose_plan(["data.root=x", "backbone=glob(botnet_s1*,exclude=*8)"]).parameters
    assert parameter.values == ("botnet_s1_110", "botnet_s1_50", "botnet_s1_59", "botnet_s1_77")
    for override in ("backbone=glob(nothing*)", "seed=glob(*)"):
        with pytest.raises(InputError, match=r" has no member of such a name; write "):
            compose_plan(["data.root=x", override])


def test_another_sweeper_is_refused(digits, tmp_path):
    given = ("-m", *SMALL, f"data.root={digits}", "hydra/sweeper=basic", "seed=1,2")
    done = run("train.py", *given, cwd=tmp_path, code=2)
    assert done.stderr.startswith("error: hydra/sweeper: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("{output_dir: x}", "error: hydra.sweeper.params: output_dir=x is about the sweep itself; "),
        ("3", "error: hydra.sweeper.params=3 must be a group, such as {seed: '1,2'}"),
    ],
)
def test_wrong_params_are_one_line(params, message, tmp_path):
    given = ("-m", "data=digits", "seed=1", f"hydra.sweeper.params={params}")
    assert run("train.py", *given, cwd=tmp_path, code=2).stderr.startswith(message)


@pytest.mark.long
@pytest.mark.slow
def test_params_in_a_file_and_a_folder_named_by_it(digits, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text(MAIN.replace("glob(resnet_sm*), ", ""))
    (tmp_path / "conf" / "swept.yaml").write_text(MAIN.replace(", cotnet_small", ""))
    short, flags = [*SMALL, f"data.root={digits}", "train.max_steps=1"], ["--config-dir", str(tmp_path / "conf"), "-cn"]
    run_process("train.py", *flags, "mine", *short, cwd=tmp_path)  # a single run does not read the sweep's settings
    run_process("train.py", "-m", *flags, "swept", *short, cwd=tmp_path)
    single, sweep = sorted(path.parent for path in tmp_path.glob("outputs/*/config.yaml")), tmp_path / "outputs"
    assert [path.name.partition("__")[0] for path in single] == ["config-mine"]
    (ledger,) = sweep.glob("config-swept__*/ledger.jsonl")
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert "seed=3" in rows[0]["sweep"]["shared"]
    assert {row["trial"]: row["state"] for row in rows if "trial" in row} == {"backbone-resnet_small": "finished"}
