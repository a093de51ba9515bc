"""A run explains itself before it is one: the page, the pictures, a line for each thing that is probably not meant."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from programs import SMALL, make_digits, once, run

from cotnet.commands.explain import IMAGENET
from cotnet.commands.library_preprocessing import training_lines
from cotnet.commands.lints import differences, lints, plan_of
from cotnet.config.compose import compose

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(shared):
    return once(shared, "three-of-each", lambda folder: make_digits(folder, train=3, val=1))


def page(done) -> dict[str, list[str]]:
    """The lines of an explanation by their titles."""
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        found.setdefault(line[2:16].strip(), []).append(line[17:])
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_explains_a_run_without_starting_or_touching_it(digits, tmp_path):
    given = [*SMALL, f"data.root={digits}", "output_dir=run", "train.batch_size=10", "launch.ranks=2"]
    said = page(run("train.py", *given, "explain=true", cwd=tmp_path))
    assert said["images"] == [f"30 to train on, 10 to evaluate, in {digits}: not checked (python -m data.check)"]
    assert said["classes"] == ["10: 0, 1, 2, 3, ..."]
    assert said["loader"] == ["DaliLoader, decodes on the CPU, 1 threads per rank"]
    assert said["device"] == ["2 x cpu, fp32"]
    assert said["batch"] == ["10 in all, 5 for each of 2 ranks"]
    assert said["steps"] == ["3 an epoch, 6 in 2 epochs: 60 images seen, crops of 32 px"]
    assert said["learning rate"][0].startswith("0.015625 at its peak, 0.0001 at first, 1e-05 at last")
    assert said["backbone"] == ["cotnet_small: 533,928 parameters, 10 classes"]
    assert said["group 1"][0].endswith("weight decay 0.0001, learning rate x 1")
    assert said["group 2"][0].endswith("weight decay 0, learning rate x 1")
    assert said["LINT"] == [
        "train.ema_decay=0.99 averages over the last 100 steps, but the run has 6; use at most 0, or train longer"
    ]
    assert "REFUSED" not in said
    assert "train.batch_size=10 (64)" in said["not the recipe"]
    assert sorted(files(tmp_path / "run")) == ["explain/images.png", "explain/schedule.png"]
    for name, size in (("images", (100, 16 + 8 * 112)), ("schedule", (800, 360))):
        with Image.open(tmp_path / "run" / "explain" / f"{name}.png") as picture:
            assert picture.size == size
            assert len(picture.getcolors(1 << 20)) > 20


def test_explains_an_imagenet_recipe_without_imagenet(tmp_path):
    given = ["experiment=pvt_medium", "launch.ranks=8", "data.crop_ratio=0.9", "explain=true"]
    said = page(run("train.py", *given, cwd=tmp_path))
    assert said["images"] == ["1,281,167 to train on, ImageNet-1k's published number: data.root is not given"]
    assert said["steps"][0].startswith("1,251 an epoch, 375,300 in 300 epochs: 384,307,200 images seen")
    assert said[""] == ["3 crops of each image in a batch, so an epoch shows 1/3 of the images"]
    assert said["backbone"] == ["pvt_medium: 44,208,104 parameters, 1000 classes"]
    assert "weight decay 0.05" in said["group 1"][0]
    assert said["an image"] == ["there is no image set to show it on"]
    assert said["not the recipe"] == ["data.crop_ratio=0.9 (0.875)"]
    assert len(said["LINT"]) == 1
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["data.crop_ratio-0.9__experiment-pvt_medium"]


def test_says_all_that_a_run_would_be_refused_for(tmp_path):
    given = [
        "experiment=digits",
        "explain=true",
        "data.root=nowhere",
        "schedule.warmup_epochs=20",
        "data.num_classes=1000",
    ]
    said = page(run("train.py", *given, "launch.ranks=3", cwd=tmp_path, code=2))
    assert said["images"][0].startswith(
        "1,281,167 to train on, ImageNet-1k's published number: data.root=nowhere: no such"
    )
    assert said["backbone"]
    refused = " | ".join(said["REFUSED"])
    assert "data.root=nowhere: no such folder" in refused
    assert "train.batch_size=64 is not divisible by 3 ranks" in refused
    assert "schedule.warmup_epochs=20 must be below the run's 20 epochs" in refused


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused because there is no GPU")
@pytest.mark.parametrize("given", ["train.sync_bn=true", "train.precision=tf32", "train.compile=true"])
def test_refuses_what_this_machine_lacks_as_training_does(given, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    overrides = [*SMALL, f"data.root={digits}", "output_dir=run", "train.batch_size=10", given]
    overrides = [override for override in overrides if given.partition("=")[0] not in override or override == given]
    line = run("train.py", *overrides, cwd=tmp_path, code=2).stderr.strip()
    assert line.startswith(f"error: {given} needs ")
    said = page(run("train.py", *overrides, "explain=true", cwd=tmp_path, code=2))
    assert said["REFUSED"] == [line.removeprefix("error: ")]
    assert said["backbone"] == ["cotnet_small: 533,928 parameters, 10 classes"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["experiment=cotnet50_avanced"], "experiment=cotnet50_avanced is unknown; did you mean cotnet50_advanced or "),
        (["explain=true", "launch.ranks=0"], "launch.ranks=0 must be at least 1"),
        (["explain=perhaps", "data.root=x"], "explain=perhaps must be true or false"),
        (["--multirun", "explain=true", "seed=1"], "explain=true explains one run; leave out --multirun"),
    ],
)
def test_bad_input_is_one_line(given, line, tmp_path):
    done = run("train.py", *given, cwd=tmp_path, code=None)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1


# --- lints ----------------------------------------------------------------------------------------------------------


def remarks(*overrides: str) -> list[str]:
    return lints(plan_of(compose("train", ["data.root=x", *overrides]), images=IMAGENET[1000], recipe=None))


@pytest.mark.parametrize(
    ("overrides", "begins", "remedy"),
    [
        (["augmentation.policy=rand-timm-m15-n2"], "augmentation.policy=rand-timm-m15-n2: ", "so m15 means m10"),
        (["augmentation.policy=rand-cot-m16-n2"], "augmentation.policy=rand-cot-m16-n2: ", "so m16 means m15"),
        (["augmentation=cotnet", "augmentation.color_jitter=0.4"], "augmentation.color_jitter=0.4 ", "set it to 0"),
        (
            ["train.epochs=6", "train.batch_size=2048"],
            "train.ema_decay=0.9999 averages over the last 10,000",
            "use at most 0.997333, or",
        ),
        (["train.max_steps=30000"], "train.max_steps=30000 ends the run at epoch 6 of 100", "set train.epochs=6"),
        (["train.max_steps=12000"], "schedule.warmup_epochs=5: train.max_steps=12000 ends", "within the warm-up"),
        (["augmentation.progressive=[128,60,120]"], "augmentation.progressive=[128, 60.0, 120.0] ", "end the growth"),
        (
            ["augmentation=cotnet", "augmentation.mix_epochs=100"],
            "augmentation.mix_epochs=100 is not before",
            "set null",
        ),
        (
            ["schedule=step", "train.epochs=90"],
            "schedule.milestones: 90 is not before the run's end at 90",
            "leave it out",
        ),
        (
            ["augmentation.mixup=0.2", "augmentation.switch=0.3"],
            "augmentation.switch=0.3 is not read: mixup and",
            "turn",
        ),
        (
            ["augmentation.erasing_fill=rand"],
            "augmentation.erasing_fill=rand is not read: augmentation.erasing is 0",
            "",
        ),
        (["augmentation.mix_by=pair"], "augmentation.mix_by=pair is not read: mixup and cutmix are off", ""),
        (
            ["optimizer.lr=0.3"],
            "optimizer.lr_per_256=0.1 is not read: optimizer.lr=0.3 is given, not the 0.1",
            "optimizer.lr_per_256=0.3 says the same",
        ),
        (
            ["schedule.warmup_epochs=0", "schedule.warmup_start=0.01"],
            "schedule.warmup_start=0.01 is not read",
            "set that",
        ),
        (["schedule=step", "schedule.end=0.01"], "schedule.end=0.01 is not read: schedule.cooldown_epochs is 0", ""),
        (["backbone.ema=false"], "backbone.ema=false is not read: backbone.weights is null", ""),
        (["train.bce_threshold=0.2"], "train.bce_threshold=0.2 is not read: train.loss=ce", "set train.loss=bce"),
    ],
)
def test_each_lint_is_one_line(overrides, begins, remedy):
    (line,) = remarks(*overrides, *(["train.epochs=100"] if "train.epochs" not in " ".join(overrides) else []))
    assert line.startswith(begins)
    assert remedy in line
    assert "\n" not in line


def test_another_mean_than_that_of_the_weights_is_said():
    external = ["backbone=timm", "backbone.model_name=tf_efficientnet_lite0", "train.epochs=100"]
    assert remarks(*external) == []  # fresh weights
    assert remarks(
        *external, "backbone.weights=lite0.pth", "data.eval_size=192", "data.eval_interpolation=bilinear"
    ) == [
        f"data.{key}={ours} differs from tf_efficientnet_lite0's own {own}; set data.{key}={own}, unless this is meant"
        for key, ours, own in (
            ("eval_size", "192", "224"),
            ("eval_interpolation", "bilinear", "bicubic"),
            ("mean", "[0.485,0.456,0.406]", "[0.5,0.5,0.5]"),
            ("std", "[0.229,0.224,0.225]", "[0.5,0.5,0.5]"),
        )
    ]
    values = ["data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]
    assert remarks(*external, "backbone.weights=lite0.pth", *values) == []
    (line,) = remarks(*external, "backbone.weights=lite0.pth", *values, "data.crop_ratio=1")
    assert line.startswith(
        "data.crop_ratio=1 differs from tf_efficientnet_lite0's own 0.875; set data.crop_ratio=0.875"
    )
    resnet = ["backbone=torchvision", "backbone.model_name=resnet50", "train.epochs=100", "data.crop_ratio=0.875"]
    (line,) = remarks(*resnet, "backbone.weights=resnet50-0676ba61.pth")  # 0.8733 resizes to the same 256 pixels
    assert line.startswith("data.eval_interpolation=bicubic differs from resnet50's own bilinear; ")


def test_the_preprocessing_of_a_librarys_weights_is_said_at_the_start():
    external = ["data=digits", "data.root=x", "backbone=timm", "backbone.model_name=tf_efficientnet_lite0"]
    weights = "backbone.weights=lite0.pth"
    assert training_lines(compose("train", external)) == []
    assert training_lines(compose("train", ["data.root=x", "backbone=cotnet50", weights])) == []
    config = compose("train", [*external, weights])
    line, *others = training_lines(config)
    assert line == (
        "preprocessing of tf_efficientnet_lite0: eval_size=32, crop_ratio=1.0, eval_interpolation=bilinear, "
        "eval_flip=false, mean=[0.5,0.5,0.5], std=[0.5,0.5,0.5]"
    )
    assert [other.partition("=")[0] for other in others] == [
        *("data.eval_size", "data.crop_ratio", "data.eval_interpolation")
    ]


def test_another_evaluation_than_the_published_one_is_said():
    given = ["data.eval_flip=false", "train.batch_size=1024", "data.eval_size=224", "data.root=x"]
    config = compose("train", ["experiment=resnet50_ffcv_88", *given])
    plan = plan_of(config, images=None, recipe="resnet50_ffcv_88", ranks=2)
    assert [line.partition(":")[0] for line in lints(plan)] == ["data.eval_size=224", "data.eval_flip=false"]
    assert "evaluates with 256" in lints(plan)[0]
    changed = [line.partition("=")[0] for line in differences(plan)]
    assert changed == ["data.eval_flip", "data.eval_size", "optimizer.lr", "train.batch_size"]


def on_ranks(recipe: str, ranks: int, *overrides: str) -> list[str]:
    config = compose("train", [f"experiment={recipe}", "data.root=x", *overrides])
    return lints(plan_of(config, images=IMAGENET[1000], recipe=recipe, ranks=ranks))


@pytest.mark.parametrize(
    ("recipe", "ranks", "overrides", "parts"),
    [
        ("cotnet50_advanced", 1, [], ("BatchNorm's statistics and each lambda of mixup and CutMix", 640, 8, 80, 8)),
        ("cotnet50_advanced", 2, [], ("BatchNorm's statistics and each lambda of mixup and CutMix", 320, 8, 80, 4)),
        (
            "cotnet50_advanced",
            2,
            ["train.accumulation=2"],
            ("BatchNorm's statistics and each lambda of mixup and CutMix", 160, 8, 80, 4),
        ),
        ("cotnet50_advanced", 1, ["augmentation.mix_by=pair"], ("BatchNorm's statistics", 640, 8, 80, 8)),
        ("cotnet50_advanced", 2, ["train.sync_bn=true"], ("each lambda of mixup and CutMix", 320, 8, 80, 4)),
        ("pvt_tiny", 4, [], ("each lambda of mixup and CutMix", 256, 8, 128, 2)),
        ("resnet50_100", 1, [], ("BatchNorm's statistics", 256, 8, 32, 8)),
        ("resnet50_a2", 2, [], ("BatchNorm's statistics and each lambda of mixup and CutMix", 1024, 4, 512, 2)),
    ],
)
def test_fewer_gpus_than_the_recipe_had(recipe, ranks, overrides, parts):
    what, ours, gpus, theirs, accumulation = parts
    assert on_ranks(recipe, ranks, *overrides) == [
        f"{what}: over {ours} images, a rank's micro-batch; experiment={recipe} was trained on {gpus} GPUs, "
        f"over {theirs}; set train.accumulation={accumulation} to do so here"
    ]
    assert on_ranks(recipe, ranks, *overrides, f"train.accumulation={accumulation}") == []


def test_nothing_to_say_about_as_many_gpus_as_the_recipe_had():
    assert on_ranks("cotnet50_advanced", 8) == on_ranks("cotnet50_advanced", 16) == on_ranks("pvt_tiny", 8) == []
    assert on_ranks("cotnet50_default", 1) == on_ranks("botnet50_paper", 1) == []  # not known for how many
    assert on_ranks("pvt_tiny", 1, "augmentation.mixup=0", "augmentation.cutmix=0") == []  # nor has it a BatchNorm
    assert on_ranks("cotnet50_advanced", 1, "train.batch_size=80") == []


def test_a_batch_that_no_accumulation_splits_as_the_recipe_did():
    (line,) = on_ranks("cotnet50_advanced", 1, "train.batch_size=200")
    assert line.endswith("over 80; train.batch_size=200 is no multiple of that on 1 ranks; change either")


def test_a_batch_above_the_set_is_no_division_by_zero():
    config = compose("train", ["experiment=digits", "data.root=x", "train.batch_size=4096"])
    assert lints(plan_of(config, images=1438, recipe="digits")) == []


@pytest.mark.parametrize("schedule", ["cosine", "linear", "polynomial"])
def test_default_warmup_is_read(schedule):
    """Null is a warm-up of 5 epochs, of a tenth of the run at most."""
    given = [f"schedule={schedule}", "schedule.warmup_epochs=null"]
    assert remarks(*given, "schedule.warmup_start=0.01", "train.epochs=100") == []
    (line,) = remarks(*given, "train.epochs=20", "train.ema_decay=0.99", "train.max_steps=10000")
    assert line.startswith("schedule.warmup_epochs=2: train.max_steps=10000 ends the run in its epoch 2, within the ")
