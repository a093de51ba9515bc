"""Every key of the two programs with a value of each wrong kind: one line that names the key, no traceback."""

import copy
import re

import pytest
import torch
from programs import ROOT, run

from cotnet.commands import eval_model, evaluate
from cotnet.commands import train as train_command
from cotnet.config.compose import compose, flatten
from cotnet.errors import InputError

WRONG = {
    "list": ["a", "b"],
    "dict": {"a": 1},
    "null": None,
    "bool": True,
    "text": "word",
    "negative": -1,
    "huge": 10**30,
    "nan": float("nan"),
}
GROUPS = ("train", "data", "launch", "checkpoint", "loader", "backbone", "optimizer", "schedule", "augmentation")
PYTHON = re.compile(r"NoneType|tuple\[|Literal|<class|dict\[|Traceback|\bstr\b|\bint\b|\bfloat\b")
# Values that are right where they stand.
RIGHT = {
    "null": (
        *("backbone.weights", "augmentation.crop_scale", "augmentation.progressive", "augmentation.policy"),
        *("augmentation.mix_epochs", "optimizer.layer_decay", "schedule.warmup_epochs", "logger.entity"),
        *("logger.project", "logger.notes", "logger.job_type"),
        *("logger.group", "train.clip_norm", "train.clip_value", "train.bce_threshold", "train.max_steps"),
        *("train.max_minutes", "launch.ranks", "checkpoint.every_steps", "checkpoint.every_minutes"),
        *("checkpoint.keep_every", "checkpoint.keep_top", "evaluation.extra", "evaluation.root"),
        "logger.watch",
    ),
    "bool": (
        *("backbone.ema", "data.eval_flip", "optimizer.nesterov", "train.channels_last", "train.compile"),
        "train.deterministic",
        *("backbone.positions", "logger.artifacts", "logger.save_code", "logger.system_metrics"),
    ),
    "text": ("logger.project", "logger.entity", "logger.group", "logger.notes", "logger.job_type"),
    "list": ("logger.tags",),
}


def changed(config, key, value):
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = value
    return config


def checked_keys(config, check, keys):
    """What is wrong: (key, kind of value, why)."""
    found = []
    for key in keys:
        for kind, value in WRONG.items():
            try:
                check(changed(config, key, value))
            except InputError as error:
                line = str(error)
                if "\n" in line or key not in line or PYTHON.search(line):
                    found.append((key, kind, line))
                if key in RIGHT.get(kind, ()):
                    found.append((key, kind, f"refused: {line}"))
            else:
                if key not in RIGHT.get(kind, ()):
                    found.append((key, kind, "accepted"))
    return found


@pytest.mark.slow
def test_every_key_of_train(digits):
    config = compose("train", ["experiment=digits", f"data.root={digits}", "train.batch_size=20", "output_dir=x"])
    program = ("output_dir", "explain", "data.root")  # below
    keys = [key for key in flatten(config) if key not in program]
    assert len(keys) > 70
    assert checked_keys(config, train_command.checked, [*keys, *GROUPS, "logger"]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "member",
    [
        *("optimizer=adamw", "optimizer=lamb", "schedule=polynomial", "schedule=step", "schedule=triangular"),
        *("backbone=botnet50", "backbone=cotnet50", "backbone=torchvision backbone.model_name=resnet18"),
        *("augmentation=advanced", "loader=torchvision"),
    ],
)
def test_every_key_of_other_members(member, digits):
    given = ["experiment=digits", f"data.root={digits}", "train.batch_size=20", "output_dir=x", *member.split()]
    config = compose("train", given)
    group = member.partition("=")[0]
    keys = [key for key in flatten(config) if key.startswith(f"{group}.")]
    assert len(keys) > 2
    assert checked_keys(config, train_command.checked, keys) == []


@pytest.mark.parametrize("given", ["output_dir=[a,b]", "output_dir={a:1}", "output_dir=true", "explain=[a]"])
def test_the_keys_of_the_program_itself(given, digits, tmp_path):
    more = ("experiment=digits", f"data.root={digits}", "train.batch_size=20", "output_dir=run")
    done = run("train.py", *more, given, cwd=tmp_path, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {given.partition('=')[0]}=") and "must be" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", ["[a,b]", "{a:1}", "true", "word", "-1", "1e400"])
def test_data_root(root, tmp_path):
    done = run("train.py", "experiment=digits", f"data.root={root}", cwd=tmp_path, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: data.root=")


@pytest.mark.slow
def test_every_key_of_evaluate(digits, tmp_path):
    config = compose("evaluate", ["checkpoint=x.pt", f"data.root={digits}", "output_dir=x"])
    keys = [key for key in flatten(config) if key not in ("output_dir", "data.root")]
    asked = ("list", "dict", "huge", "nan", "negative", "text")
    small = ROOT / "datasets" / "digits"
    assert small.is_dir()
    path = tmp_path / "small.pth"
    torch.save({"state_dict": {"fc.weight": torch.zeros(1)}}, path)
    base = changed(config, "checkpoint", str(path)) | {"backbone": {"_target_": "cotnet.models.cotnet_small"}}
    found = []
    for key in keys:
        for kind in asked:
            try:
                eval_model.read(*evaluate.checked(changed(base, key, WRONG[kind])))
            except InputError as error:
                line = str(error)
                fits = "does not fit the model" in line  # all settings were right: the weights were looked at
                if "\n" in line or PYTHON.search(line) or not (key in line or fits):
                    found.append((key, kind, line))
                if fits and (key, kind) not in ACCEPTED:
                    found.append((key, kind, "accepted"))
    assert found == [], "\n".join(map(str, found))


ACCEPTED = ()
