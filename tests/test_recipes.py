"""The recipes are those of docs/recipes.md; each can be built, and the unusual ones train."""

import json
import math
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from programs import SMALL, run

from cotnet import dense_parts, parts
from cotnet.commands.explain import IMAGENET
from cotnet.commands.lints import GPUS, lints, plan_of
from cotnet.config.compose import CONF, compose, flatten
from cotnet.engine.losses import loss_function
from cotnet.engine.optimizer import parameter_groups
from cotnet.engine.schedule import warmup_of
from cotnet.models.table import native_evaluation
from cotnet.sweeps.space import read

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"
RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SOURCE = re.compile(r"(read|read in a copy|recalled|ours)([:;] \S.*)?")


class Row(NamedTuple):
    setting: str
    value: str
    source: str


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables() -> dict[str, tuple[str | None, list[Row]]]:
    """Recipe -> the recipe that it is based on, and its rows."""
    found: dict[str, tuple[str | None, list[Row]]] = {}
    for section in re.split(r"^##+ ", DOCS.read_text(), flags=re.M)[1:]:
        name, _, body = section.partition("\n")
        parent = re.search(r"^As `(\w+)`, but:$", body, flags=re.M)
        lines = body.partition("| setting | value | source |\n|---|---|---|\n")[2].splitlines()
        rows = [Row(*cells(line)) for line in lines if line.startswith("|")]
        if rows:
            found[name] = (parent[1] if parent else None, rows)
    return found


def overview() -> dict[str, list[str]]:
    lines = DOCS.read_text().partition("| `experiment=` | epochs |")[2].splitlines()[2:]
    return {row[0]: row[1:] for row in map(cells, lines[: lines.index("")])}


TABLES, OVERVIEW = tables(), overview()


def documented(name: str) -> dict[str, str]:
    """Setting -> value of a recipe's table and of those that it is based on."""
    parent, rows = TABLES[name]
    return (documented(parent) if parent else {}) | {row.setting: row.value for row in rows}


def same(a: Any, b: Any) -> bool:
    return math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else a == b


@cache
def composed(name: str) -> dict[str, Any]:
    return compose("train", [f"experiment={name}", "data.root=x", *NEEDED.get(name, ())])


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """Its flat form, with the warm-up that null stands for."""
    warmup = warmup_of(config["schedule"]["warmup_epochs"], epochs=config["train"]["epochs"])
    return {**flatten(config), "schedule.warmup_epochs": warmup}


NEEDED = {"finetune": [f"backbone.weights={__file__}"]}


CLASSIFIERS = sorted(OVERVIEW)  # as the page says; composing all of them is left to the tests


def test_docs_list_every_recipe():
    assert sorted(TABLES) == RECIPES, "give each file in conf/experiment a section with a table in docs/recipes.md"
    classifiers = [name for name in RECIPES if not parts.is_dense(composed(name))]
    assert classifiers == CLASSIFIERS, "list each file in conf/experiment in the first table of docs/recipes.md"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_its_table(name):
    """What the table says, put on a command line, gives the recipe: no other value, no other setting."""
    by_hand = [f"{setting}={value}" for setting, value in documented(name).items()]
    theirs = settled(compose("train", ["data.root=x", *NEEDED.get(name, ()), *by_hand]))
    ours = settled(composed(name))
    assert ours.keys() == theirs.keys()
    different = {key: (ours[key], theirs[key]) for key in ours if not same(ours[key], theirs[key])}
    assert not different, "recipe and table differ"


def test_each_value_has_a_source():
    for _, rows in TABLES.values():
        for row in rows:
            assert SOURCE.fullmatch(row.source), row
        assert len({row.setting for row in rows}) == len(rows)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_recipe_can_be_built_and_is_as_the_overview_says(name):
    config = composed(name)
    settings = parts.settings_of(config)
    with torch.device("meta"):
        model = parts.build_backbone({**config["backbone"], "weights": None})
    assert parts.build_optimizer(config, [{"params": model.parameters()}]).param_groups[0]["params"]
    schedule = parts.schedule_of(config)
    rates = [schedule(settings.train.epochs * step / 1000) for step in range(1001)]
    assert max(rates) == pytest.approx(config["optimizer"]["lr"], rel=0.02)
    assert rates[0] == pytest.approx(config["schedule"]["warmup_start"])
    assert rates[-1] == pytest.approx(config["schedule"]["end"])
    images = {"digits": 1438, "fashion_mnist": 60_000}.get(name, IMAGENET[1000])
    assert lints(plan_of(config, images=images, recipe=None)) == []
    epochs, gpus, evaluation, published, ours = OVERVIEW[name]
    data, flip = config["data"], " + flip" if config["data"]["eval_flip"] else ""
    assert int(epochs) == config["train"]["epochs"]
    assert gpus.removesuffix(" (recalled)") == str(GPUS.get(name, "–"))
    assert config["train"]["batch_size"] % GPUS.get(name, 1) == 0
    assert evaluation == f"{data['eval_size']}, {data['crop_ratio']:.3g}, {data['eval_interpolation']}{flip}"
    assert re.fullmatch(r"–|\d\d\.\d+ / (\d\d\.\d+|–)( \(recalled\))?", published)
    assert ours


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if re.match("(se_)?cot|pvt", name)])
def test_recipe_evaluates_as_published_weights_are_evaluated(name):
    config = composed(name)
    size, ratio = config["data"]["eval_size"], config["data"]["crop_ratio"]
    backbone = config["backbone"]["_target_"].rpartition(".")[2]
    assert (size, ratio) == native_evaluation(backbone, 320 if name.endswith("_320") else None)
    assert config["data"]["image_size"] == size


DENSE_COMMANDS = re.findall(
    r"^\| `(experiment=.+?)` \| (?:COCO|ADE20K|drawn shapes) \| (\S+)(?: \S+)* \|", DOCS.read_text(), flags=re.M
)


def test_docs_list_every_dense_recipe():
    named = {command.split()[0].removeprefix("experiment=") for command, _ in DENSE_COMMANDS}
    assert sorted(named) == sorted(set(RECIPES) - set(CLASSIFIERS))
    assert len([command for command, _ in DENSE_COMMANDS if "experiment=cotnet_" in command]) == 24


def first_of_each(commands: list[str]) -> list[Any]:
    """Further backbones of an experiment are long."""
    seen: set[str] = set()
    marked = []
    for command in commands:
        marked.append(pytest.param(command, marks=[pytest.mark.long] * (command.split()[0] in seen)))
        seen.add(command.split()[0])
    return marked


@pytest.mark.parametrize("command", first_of_each([command for command, _ in DENSE_COMMANDS]))
def test_dense_recipe_can_be_built(command):
    config = compose("train", ["data.root=x", *command.split()])
    settings = dense_parts.settings_of(config)
    with torch.device("meta"):
        model = dense_parts.build_model(config, settings)
    groups = parameter_groups(model, config["optimizer"]["weight_decay"])
    assert parts.build_optimizer(config, groups).param_groups[0]["params"]
    rates = [parts.schedule_of(config)(settings.train.epochs * step / 1000) for step in range(1001)]
    assert max(rates) == pytest.approx(config["optimizer"]["lr"], rel=0.02)


ABLATIONS = re.findall(
    r"^python train\.py --multirun (.+)\n```\n\n\| (\S+) \| params \| published top-1 \|\n\|[-|]+\|\n((?:\| .+\n)+)",
    DOCS.read_text().partition("## Ablations")[2],
    flags=re.M,
)


def test_every_ablation_has_a_table():
    assert len(ABLATIONS) == DOCS.read_text().count("--multirun ")


@pytest.mark.parametrize(("command", "key", "table"), ABLATIONS, ids=[command for command, _, _ in ABLATIONS])
def test_ablation_is_a_multirun_of_its_table(command, key, table):
    """One setting varies over the table's rows; each row composes, differs, has the parameters it says and no lint."""
    shared, (parameter,) = read(shlex.split(command))
    rows = [cells(line) for line in table.splitlines()]
    assert (parameter.key, [value.lower() for value in parameter.values]) == (key, [row[0] for row in rows])
    seen = []
    for value, params, published in rows:
        config = compose("train", ["data.root=x", *shared, f"{key}={value}"])
        parts.settings_of(config)
        with torch.device("meta"):
            model = parts.build_backbone(config["backbone"])
        assert f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f}" == params, value
        assert re.fullmatch(r"–|\d\d\.\d+( \((copy|recalled)\))?", published)
        assert lints(plan_of(config, images=IMAGENET[1000], recipe=None)) == []
        assert config not in seen
        seen.append(config)


def one_step(*overrides: str, size: int = 32) -> tuple[torch.nn.Module, float]:
    """A backbone after one optimizer step of a recipe on two random images, and the loss before it."""
    config = compose("train", ["data.root=x", "data.num_classes=10", *overrides])
    settings = parts.settings_of(config)
    torch.manual_seed(0)
    model = parts.build_backbone(config["backbone"])
    given = config["optimizer"]
    optimizer = parts.build_optimizer(config, parameter_groups(model, given["weight_decay"], given["layer_decay"]))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    targets = torch.tensor([[0.7, 0.3] + [0.0] * 8, [0.0] * 9 + [1.0]])
    loss = loss_function(settings.train)(model(torch.randn(2, 3, size, size)), targets)
    loss.backward()
    optimizer.step()
    assert not all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    return model, loss.item()


@pytest.mark.parametrize("fusion", ["static", "dynamic", "linear", "attention"])
def test_fusions_train(fusion):
    model, loss = one_step("experiment=cotnet50_default", "backbone=cotnet_small", f"backbone.fusion={fusion}")
    assert loss == pytest.approx(math.log(10), rel=0.7)
    assert any(name.endswith("se.0.weight") for name, _ in model.named_parameters()) == (fusion == "attention")


def test_lamb_with_binary_cross_entropy_trains():
    _, loss = one_step("experiment=resnet50_a1", "backbone=cotnet_small")
    assert loss == pytest.approx(math.log(2), rel=0.5)  # of ten questions with a yes or a no each


@pytest.mark.slow
def test_blurpool_trains():
    one_step("experiment=resnet50_ffcv_88", size=64)


@pytest.mark.long
@pytest.mark.slow
def test_growing_images_and_mirrored_evaluation_train(digits, tmp_path):
    given = ["experiment=resnet50_ffcv_16", "backbone=cotnet_small", "data=digits", f"data.root={digits}", *SMALL[1:]]
    sizes = ["data.image_size=32", "data.eval_size=32", "augmentation.progressive=[16,0,1]"]
    run("train.py", *given, *sizes, "loader=torchvision", "output_dir=run", "schedule.peak_epoch=1", cwd=tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["eval_flip"] is True
    assert config["schedule"]["_target_"].endswith("triangular")
