"""typed, build and the composition of every group: values, and the one line that each mistake gets."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Required, TypedDict, Unpack

import pytest
import torch
import yaml

from cotnet import dense_parts, parts
from cotnet.commands.eval_model import completed
from cotnet.config.build import bind, build, convert, typed
from cotnet.config.compose import CONF, compose, flatten, own_config, to_yaml
from cotnet.config.continuing import run_name
from cotnet.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Sample:
    count: int
    rate: float
    folder: Path
    name: Literal["red", "green"]
    pair: tuple[float, float] | None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} must be at least 1")


GOOD: dict[str, Any] = {"count": 3, "rate": 1, "folder": "a/b", "name": "red", "pair": [0, 1.5]}


def test_typed_converts_what_yaml_cannot_say():
    sample = typed(Sample, GOOD, "sample")
    assert sample == Sample(count=3, rate=1.0, folder=Path("a/b"), name="red", pair=(0.0, 1.5))
    assert isinstance(sample.rate, float)
    assert isinstance(sample.pair, tuple)
    assert typed(Sample, {**GOOD, "pair": None}, "sample").pair is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuont": 3}, "sample.cuont is not a setting; did you mean sample.count?"),
        ({"count": "many"}, "sample.count=many must be a whole number"),
        ({"count": True}, "sample.count=true must be a whole number"),
        ({"count": 2.5}, "sample.count=2.5 must be a whole number"),
        ({"count": 0}, "sample.count=0 must be at least 1"),
        ({"name": "gren"}, "sample.name=gren is unknown; did you mean green or red?"),
        ({"pair": [1]}, "sample.pair=[1] must be null or a list of 2 numbers"),
        ({"rate": {"_target_": "os.system"}}, "sample.rate: a nested _target_ is not allowed"),
    ],
)
def test_typed_names_the_key(change, message):
    with pytest.raises(InputError) as error:
        typed(Sample, {**GOOD, **change}, "sample")
    assert str(error.value) == message


def test_typed_asks_for_what_is_missing():
    with pytest.raises(InputError, match=r"^sample\.rate is required; set sample\.rate to a number$"):
        typed(Sample, {key: value for key, value in GOOD.items() if key != "rate"}, "sample")


class Shared(TypedDict, total=False):
    classes: Required[int]
    drop: float


def constructor(*, side: int = 8, **shared: Unpack[Shared]) -> dict[str, Any]:
    return {"side": side, **shared}


def test_settings_that_several_functions_share():
    assert typed(constructor, {"classes": 3, "drop": 1}, "backbone") == {"side": 8, "classes": 3, "drop": 1.0}
    for node, message in (
        ({"classes": 3, "dorp": 1}, "backbone.dorp is not a setting; did you mean backbone.drop?"),
        ({"classes": "many"}, "backbone.classes=many must be a whole number"),
        ({"drop": 0.5}, "backbone.classes is required; set backbone.classes to a whole number"),
    ):
        with pytest.raises(InputError) as error:
            typed(constructor, node, "backbone")
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("optimizer", "os.system"),
        ("optimizer", "torch.utils.collect_env.run"),
        ("optimizer", "torch.optim.lr_scheduler.StepLR"),
        ("schedule", "cotnet.engine.launch.launch"),
        ("loader", "data.prepare.main"),
        ("logger", "subprocess.Popen"),
        ("augmentation", "builtins.exec"),
        ("backbone", "torchvision.models.resnet50"),
    ],
)
def test_build_refuses_targets_outside_the_group(group, target):
    with pytest.raises(InputError, match=f"^{group}._target_ '{target}' is not allowed; "):
        build({"_target_": target}, group)


def test_build_calls_the_target_and_explains_its_refusal():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = build({"_target_": "torch.optim.SGD", "lr": 1, "momentum": 0.5}, "optimizer", params=[weight])
    assert optimizer.defaults["momentum"] == 0.5
    with pytest.raises(InputError, match=r"^optimizer\.momentun is not a setting; did you mean optimizer\.momentum\?$"):
        build({"_target_": "torch.optim.SGD", "lr": 1, "momentun": 0.5}, "optimizer", params=[weight])
    with pytest.raises(
        InputError, match=r"^optimizer cannot be built: Invalid momentum value: -1.*optimizer.momentum=-1"
    ):
        build({"_target_": "torch.optim.SGD", "lr": 1, "momentum": -1}, "optimizer", params=[weight])
    with pytest.raises(InputError, match=r"^optimizer\._target_ 'torch\.optim\.Sdg' cannot be imported"):
        build({"_target_": "torch.optim.Sdg"}, "optimizer", params=[weight])


def test_bind_leaves_an_argument_for_later():
    node = {"_target_": "cotnet.engine.schedule.step", "warmup_epochs": 0, "warmup_start": 0, "cooldown_epochs": 0}
    schedule = bind(
        {**node, "end": 0, "gamma": 0.5, "milestones": [2]}, "schedule", later=("epoch",), peak=8.0, epochs=4.0
    )
    assert [schedule(epoch) for epoch in (0, 1.99, 2)] == [8.0, 8.0, 4.0]


def test_convert_keeps_any():
    assert convert([1, "a"], Any, "key") == [1, "a"]


def test_run_name_has_no_clock_and_only_what_matters():
    assert run_name(["train.epochs=3", "loader.threads=2", "backbone=cotnet50"]) == "backbone-cotnet50"
    assert run_name(["launch.ranks=2", "output_dir=x", "logger=none", "checkpoint.every_steps=3"]) == "default"
    assert run_name(["checkpoint=a=b/last.pt", "data.root=d"]) == "checkpoint-a-b_last.pt__data.root-d"
    assert run_name(["data.root=/a/b c"]) == "data.root-_a_b_c"
    long = [f"+key{i}={'v' * 30}" for i in range(9)]
    assert len(run_name(long)) <= 120
    assert run_name(long) != run_name([*long, "seed=1"])


def test_configuration_survives_its_file(tmp_path):
    config = compose("train", ["data=digits"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    assert flatten(config)["data.num_classes"] == 10


def members(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


NEEDED = {f"backbone={library}": ["backbone.model_name=resnet18"] for library in ("timm", "torchvision")}
NEEDED |= {
    f"{member}": ["task=detection"] for member in ("data=coco", "data=shapes", "loader=dense", "augmentation=detection")
}
NEEDED |= {
    f"{member}": ["task=segmentation"] for member in ("data=ade20k", "data=shapes_ade", "augmentation=segmentation")
}
GROUPS = (
    "backbone",
    "task",
    "data",
    "loader",
    "augmentation",
    "optimizer",
    "schedule",
    "logger",
)  # experiment: test_recipes.py


def test_every_group_offers_a_choice():
    assert all(len(members(group)) >= 2 for group in GROUPS)


@pytest.mark.parametrize(("group", "member"), [(group, member) for group in GROUPS for member in members(group)])
def test_every_member_composes_and_type_checks(group, member):
    overrides = [f"{group}={member}", "data.root=nowhere", *NEEDED.get(f"{group}={member}", ())]
    config = compose("train", overrides)
    settings = (dense_parts if parts.is_dense(config) else parts).settings_of(config)
    assert settings.train.batch_size == config["train"]["batch_size"]
    parameter = torch.nn.Parameter(torch.zeros(3, 3))
    optimizer = parts.build_optimizer(config, [{"params": [parameter]}])
    assert optimizer.param_groups[0]["lr"] == config["optimizer"]["lr"]
    assert parts.schedule_of(config)(settings.train.epochs) <= config["optimizer"]["lr"]


@pytest.mark.slow
@pytest.mark.parametrize("name", members("backbone"))
def test_every_backbone_instantiates(name):
    config = compose("train", [f"backbone={name}", "data=digits", *NEEDED.get(f"backbone={name}", ())])
    with torch.device("meta"):
        model = parts.build_backbone(config["backbone"])
    assert sum(p.numel() for p in model.parameters()) > 10_000


def test_learning_rate_follows_the_batch_unless_given():
    assert compose("train", ["data=digits", "train.batch_size=640"])["optimizer"]["lr"] == pytest.approx(0.25)
    assert compose("train", ["data=digits", "optimizer.lr=0.3"])["optimizer"]["lr"] == 0.3


def test_an_evaluation_has_the_checkpoints_loader_but_for_what_is_given():
    checkpoint = {"config": json.dumps(compose("train", ["data=digits", "loader=torchvision", "loader.threads=7"]))}
    theirs = {"_target_": "data.loading.torchvision.TorchvisionLoader", "threads": 7, "prefetch": 2, "device": "auto"}
    ours = {"_target_": "data.loading.dali.DaliLoader", "threads": 1, "prefetch": 2, "device": "auto"}
    for given, expected in (
        ((), theirs),
        (("loader.threads=1",), {**theirs, "threads": 1}),
        (("loader=dali", "loader.threads=1"), ours),
    ):
        assert completed(compose("evaluate", ["checkpoint=x", *given]), checkpoint)["loader"] == expected


def test_checkpoints_from_before_a_setting_evaluate_as_they_did():
    trained = compose("train", ["data=digits"])
    del trained["data"]["eval_flip"]
    checkpoint = {"config": json.dumps(trained)}
    assert completed(compose("evaluate", ["checkpoint=x"]), checkpoint)["data"]["eval_flip"] is False
    assert completed(compose("evaluate", ["checkpoint=x", "data.eval_flip=true"]), checkpoint)["data"]["eval_flip"]


def test_a_programs_own_configuration_is_no_part_of_folder_names():
    programs = {path.stem for path in CONF.glob("*.yaml") if "hydra" in yaml.safe_load(path.read_text())}
    assert programs == {"train", "evaluate", "look", "export"}
    for name in programs:
        assert own_config(name) == own_config(f"{name}.yaml") == []
    assert own_config("mine") == ["config=mine"]
