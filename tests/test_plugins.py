"""Parts of somebody else's package: admitted by `plugins=[...]` on a command, never by a checkpoint."""

import json
import sys
from pathlib import Path

import pytest
from programs import ROOT, SMALL, Done, assert_same_weights, checkpoint, run, run_process, start

from cotnet import parts
from cotnet.config import plugins
from cotnet.config.build import target_of
from cotnet.errors import InputError
from cotnet.export import save_pretrained
from cotnet.models.weights import trusted_backbone

WORD = "plugins=[example_plugin]"
CONF = str(ROOT / "tests" / "example_plugin" / "conf")
OPERATOR, DEPTHWISE = "backbone.operator", "example_plugin.nets.depthwise"
PLUGGED = ("experiment=plugged", *(word for word in SMALL[2:] if "warmup" not in word), "schedule.warmup_epochs=0")


@pytest.fixture(autouse=True)
def nothing_admitted():
    """Tests share a process; each begins and ends with nothing admitted."""
    yield
    plugins.admit(())


@pytest.fixture(scope="module")
def indexed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in one list of JSON lines, with other names of the classes."""
    root = tmp_path_factory.mktemp("indexed")
    for split in ("train", "val"):
        (root / split).symlink_to(digits / split)
    files = sorted(path.relative_to(root) for split in ("train", "val") for path in (root / split).glob("*/*"))
    rows = [{"split": file.parts[0], "file": str(file), "class": f"digit {file.parts[1]}"} for file in files]
    (root / "index.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return root


def train(root: Path, name: str, *overrides: str, cwd: Path, code: int = 0) -> Done:
    given = ("--config-dir", CONF, *PLUGGED, f"data.root={root}", f"output_dir={name}", *overrides)
    return run("train.py", *given, cwd=cwd, code=code)


@pytest.fixture(scope="module")
def trained(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with one part of each kind, cut after two: `cut`; and not cut: `uncut`."""
    folder = tmp_path_factory.mktemp("plugged")
    train(indexed, "uncut", "train.max_steps=3", cwd=folder)
    train(indexed, "cut", "train.max_steps=2", cwd=folder)
    assert "continuing cut" in train(indexed, "cut", "train.max_steps=3", cwd=folder).stdout
    return folder


@pytest.mark.slow
def test_one_part_of_each_kind_trains_and_continues_exactly(trained):
    assert_same_weights(trained / "cut", trained / "uncut")
    stored = checkpoint(trained / "uncut")
    assert list(stored["classes"]) == [f"digit {number}" for number in range(10)]
    assert json.loads(stored["config"])["plugins"] == ["example_plugin"]
    assert [line.partition(",")[0] for line in (trained / "uncut" / "accuracy.csv").read_text().splitlines()] == ["3"]


@pytest.mark.slow
def test_a_checkpoint_admits_nothing(trained, indexed):
    for name in [name for name in sys.modules if name.partition(".")[0] == "example_plugin"]:
        del sys.modules[name]
    line = run("evaluate.py", "checkpoint=uncut", "output_dir=e", cwd=trained, code=2).stderr
    assert line.startswith("error: data._target_ 'example_plugin.images.Indexed' is not allowed; ")
    assert line.endswith("to admit your package example_plugin add plugins=[example_plugin]\n")
    line = train(indexed, "uncut", "plugins=[]", cwd=trained, code=2).stderr
    assert "add plugins=[example_plugin]\n" in line
    run_process("-m", "cotnet.look", "checkpoint=uncut", "images=[x.png]", cwd=trained, code=2)
    assert "example_plugin" not in sys.modules
    assert not (trained / "e").exists()
    done = run("evaluate.py", "checkpoint=uncut", "output_dir=e", WORD, cwd=trained)
    assert "top-1" in done.stdout
    again = json.loads((trained / "e" / "metrics.json").read_text())["top1"]
    assert again == json.loads((trained / "uncut" / "summary.json").read_text())["best_top1"]


@pytest.mark.slow
def test_an_operator_takes_the_place_of_ours(digits, tmp_path):
    given = (*SMALL, f"data.root={digits}", "train.epochs=1", "schedule.warmup_epochs=0", "backbone.width=8")
    member = ("--config-dir", CONF, *given, "backbone=depthwise_small", "output_dir=member")
    refused = "error: backbone.operator._target_ 'example_plugin.nets.depthwise' is not of an admitted package; "
    for program, words in (("train.py", member), ("evaluate.py", ("checkpoint=member", "output_dir=e"))):
        line = run(program, *words, cwd=tmp_path, code=2).stderr
        assert line == f"{refused}if you trust the package example_plugin, add plugins=[example_plugin]\n"
        assert not (tmp_path / words[-1].partition("=")[2]).exists()
        assert run(program, *words, WORD, cwd=tmp_path).stdout
    stored = checkpoint(tmp_path / "member", "best.pt")
    assert stored["model"]["layer1.0.conv2.weight"].shape == (8, 1, 5, 5)
    figures = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert figures["top1"] == json.loads((tmp_path / "member" / "summary.json").read_text())["best_top1"]
    words = ("backbone=operator_small", f"+{OPERATOR}._target_={DEPTHWISE}", f"+{OPERATOR}.kernel_size=5")
    run("train.py", *given, *words, WORD, "output_dir=words", cwd=tmp_path)
    assert_same_weights(tmp_path / "words", tmp_path / "member")


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ({"_target_": DEPTHWISE, "kernel_size": 0}, "backbone.operator.kernel_size=0 must be at least 1"),
        ({"_target_": DEPTHWISE, "kernel_size": 4}, "backbone cannot be built: a kernel of 4 has no centre; "),
        ({"_target_": DEPTHWISE, "kernel": 3}, "backbone.operator.kernel is not a setting; did you mean "),
        ({"_target_": DEPTHWISE, "kernel_size": {"_target_": "os.system"}}, "backbone setting 'operator' of "),
        ({"_target_": "example_plugin.nets.deep"}, "backbone.operator._target_ 'example_plugin.nets.deep' cannot be "),
        ({"_target_": "example_plugin.nets.small_resnet"}, "backbone.operator._target_ 'example_plugin.nets.small_res"),
        ({"_target_": "torch.nn.Conv2d"}, "backbone.operator._target_ 'torch.nn.Conv2d' is not of an admitted package"),
        ({"_target_": 3}, "backbone.operator._target_ '3' is not of an admitted package"),
        ({"kernel_size": 3}, "backbone.operator={kernel_size:3} must be convolution, grouped, "),
        ("cott", "backbone.operator=cott is unknown; did you mean cot or coxt?"),
    ],
)
def test_an_operator_that_cannot_be_built_is_one_line(operator, message):
    plugins.admit(["example_plugin"])
    with pytest.raises(InputError) as error:
        parts.build_backbone({"_target_": "cotnet.models.operator_small", "operator": operator})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_folder_cannot_name_a_plug_ins_operator(tmp_path):
    plugins.admit(["example_plugin"])
    node = {"_target_": "cotnet.models.operator_small", "operator": {"_target_": DEPTHWISE, "kernel_size": 3}}
    model = parts.build_backbone(node)
    assert model.spec.settings == {"operator": node["operator"]}
    with pytest.raises(InputError, match=r"the model's operator is of a plug-in, which from_pretrained never imports"):
        save_pretrained(model, tmp_path / "folder")
    with pytest.raises(InputError, match=r"an operator returns a dictionary, name to module"):
        parts.build_backbone({**node, "operator": {"_target_": "example_plugin.nets.bare"}})


@pytest.mark.long
@pytest.mark.slow
def test_ranks_admit_it_too(indexed, tmp_path):
    train(indexed, "ranks", "launch.ranks=2", "train.max_steps=1", cwd=tmp_path)
    assert len(checkpoint(tmp_path / "ranks")["ranks"]) == 2


@pytest.mark.long
@pytest.mark.slow
def test_trials_admit_it_too(indexed, tmp_path):
    given = ("launch.ranks=1", "train.max_steps=1", "logger=none", "seed=1,2")
    words = ("--config-dir", CONF, *PLUGGED, f"data.root={indexed}", "output_dir=sweep", *given)
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    output, errors = start("train.py", "-m", *words, cwd=tmp_path, variables=path).communicate(timeout=280)
    assert not errors, output
    assert len(list(tmp_path.glob("sweep/*/checkpoints/last.pt"))) == 2


def test_only_what_a_package_defines_is_admitted():
    name = "example_plugin.nets.depthwise_net"
    with pytest.raises(
        InputError, match=r"not one of cotnet\.models.*; if you trust .* add plugins=\[example_plugin\]"
    ):
        trusted_backbone({"_target_": name})
    plugins.admit(["example_plugin"])
    assert trusted_backbone({"_target_": name}, plugins=plugins.admitted()) == {"_target_": name}
    assert target_of({"_target_": name}, "backbone").__name__ == "depthwise_net"
    for wrong in ("nets.nn.Linear", "images.json.loads", "nets.small_resnet", "nets.__name__", "images.np.save"):
        with pytest.raises(
            InputError, match=r"(cannot be imported|is not a public function or class that example_plugin)"
        ):
            target_of({"_target_": f"example_plugin.{wrong}"}, "backbone")
    with pytest.raises(InputError, match=r"backbone setting 'width' of .* is not a plain value"):
        trusted_backbone({"_target_": name, "width": {"_target_": "os.system"}}, plugins=plugins.admitted())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["no_such_package_1"],
            "plugins=[no_such_package_1] cannot be imported: No module named 'no_such_package_1'; ",
        ),
        (["raises_at_import"], "plugins=[raises_at_import] cannot be imported: no licence ("),
        (["written_wrong"], "plugins=[written_wrong] cannot be imported: "),
        (["names_ours"], "plugins=[names_ours]: "),
        (["data"], "plugins=[data]: data is the name of a package of the application; name one of your own"),
        (["torch"], "plugins=[torch]: torch is the name of a package of a library; name one of your own"),
        (["os"], "plugins=[os]: os is the name of a package of a library; name one of your own"),
        (["a.b"], "plugins: a.b is not a package's name; write plugins=[mypackage]"),
        ("3", "plugins: 3 is not a package's name; write plugins=[mypackage]"),
    ],
)
def test_a_package_that_cannot_be_admitted_is_one_line(given, message, tmp_path, monkeypatch):
    (tmp_path / "raises_at_import.py").write_text("raise ValueError('no licence')")
    (tmp_path / "written_wrong.py").write_text("def f(:\n")
    (tmp_path / "names_ours" / "conf" / "backbone").mkdir(parents=True)
    (tmp_path / "names_ours" / "__init__.py").touch()
    (tmp_path / "names_ours" / "conf" / "backbone" / "cotnet50.yaml").write_text("_target_: names_ours.net")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError) as error:
        plugins.admit(given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert plugins.admitted() == ()


@pytest.mark.slow
def test_the_programs_say_it(digits, tmp_path):
    for program in ("train.py", "evaluate.py"):
        given = (*SMALL, f"data.root={digits}") if program == "train.py" else ("checkpoint=x",)
        done = run(program, *given, "plugins=[no_such_package_1]", cwd=tmp_path, code=2)
        assert done.stderr.startswith("error: plugins=[no_such_package_1] cannot be imported: ")
        assert done.stderr.count("\n") == 1
