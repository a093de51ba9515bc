"""How a run uses its image set: repeats, growing images, another set, excluded files."""

import shutil
from pathlib import Path

import pytest
import torch
from programs import SMALL, assert_same_weights, checkpoint, make_digits, run

from cotnet import image_parts, parts
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.errors import InputError
from data.check import check


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return make_digits(tmp_path_factory.mktemp("set") / "digits", train=4, val=2)


def open_loader(digits, *overrides):
    config = compose("train", [*SMALL, f"data.root={digits}", *overrides])
    settings = parts.settings_of(config)
    train, _ = image_parts.read_data(settings.data)
    ranks = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    return parts.train_loader(config, settings, train, ranks)


def test_repeats_reach_the_loader(digits):
    loader, steps = open_loader(digits, "augmentation.repeats=4")
    assert steps == 2
    indices = torch.cat([batch.indices for batch in loader.batches(0)])
    loader.close()
    files = indices.view(-1, 4) % 40
    assert (files == files[:, :1]).all()
    assert len(files.unique()) == 10
    assert len(indices.unique()) == 40


@pytest.mark.slow
def test_growing_images(digits):
    loader, _ = open_loader(digits, "augmentation.progressive=[16,1,3]", "data.image_size=64")
    sizes = [next(loader.batches(epoch)).images.shape[-1] for epoch in range(5)]
    loader.close()
    assert sizes == [16, 16, 32, 64, 64]
    for size, begin, until in ((64, 1, 3), (0, 1, 3), (16, 2, 2), (16, -1, 2)):
        line = rf"^augmentation.progressive: image size {size} to 32 over the epochs {begin} to {until} does not grow; "
        with pytest.raises(InputError, match=line):
            open_loader(digits, f"augmentation.progressive=[{size},{begin},{until}]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.batch_size=24", "train.accumulation=5"],
            "train.batch_size=24 is not divisible by 1 ranks x 5 accumulation steps; use 20 or 25",
        ),
        (["train.batch_size=41"], "train.batch_size=41 exceeds the 40 training images; lower it"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(overrides, message, digits):
    with pytest.raises(InputError) as caught:
        open_loader(digits, *overrides)
    assert str(caught.value) == message


@pytest.mark.long
@pytest.mark.slow
def test_a_run_with_growing_and_repeated_images_resumes_exactly(digits, tmp_path):
    given = [*SMALL, f"data.root={digits}", "augmentation.progressive=[16,0,1]", "augmentation.repeats=2"]
    run("train.py", *given, "output_dir=whole", cwd=tmp_path)
    for steps in (1, 3):
        run("train.py", *given, "output_dir=cut", f"train.max_steps={steps}", cwd=tmp_path)
    run("train.py", *given, "output_dir=cut", cwd=tmp_path)
    one, other = (checkpoint(tmp_path / name)["model"] for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_another_set_is_refused_and_an_excluded_file_is_not(digits, tmp_path):
    root = Path(shutil.copytree(digits, tmp_path / "set"))
    given = [*SMALL, f"data.root={root}", "output_dir=run"]
    run("train.py", *given, "train.max_steps=1", cwd=tmp_path)
    kept = checkpoint(tmp_path / "run")["image_set"]
    victim = root / "train" / "3" / "new.png"
    shutil.copy(next((root / "train" / "3").iterdir()), victim)
    line = run("train.py", *given, "train.max_steps=2", cwd=tmp_path, code=2).stderr
    assert line.startswith(f"error: run/checkpoints/last.pt was trained on image set {kept[:12]}, data.root now holds ")
    assert line.count("\n") == 1
    victim.unlink()
    victim = sorted((root / "train" / "3").iterdir())[0]
    victim.write_bytes(b"not an image")
    check(root, workers=1)
    done = run("train.py", *given, "train.max_steps=2", cwd=tmp_path)
    assert f"{root}: 1 train and 0 val files are excluded, for the reasons in {root}/manifest.json" in done.stdout
    assert checkpoint(tmp_path / "run")["progress"]["step"] == 2


@pytest.mark.slow
def test_a_run_continues_where_its_images_have_moved(digits, tmp_path):
    """In its default folder, to the same last bit; a set with other images is refused, though the run is finished."""
    first, second = Path(shutil.copytree(digits, tmp_path / "first")), tmp_path / "second"
    run("train.py", *SMALL, f"data.root={first}", "output_dir=uncut", cwd=tmp_path)
    run("train.py", *SMALL, f"data.root={first}", "train.max_steps=3", cwd=tmp_path)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert checkpoint(folder)["progress"]["step"] == 3
    first.rename(second)
    done = run("train.py", *SMALL, f"data.root={second}", cwd=tmp_path)
    assert f'(data.root was "{first}", now "{second}"; train.max_steps was 3, now null)' in done.stdout
    assert list((tmp_path / "outputs").iterdir()) == [folder]
    assert_same_weights(tmp_path / "uncut", folder)
    other = Path(shutil.copytree(second, tmp_path / "other"))
    next((other / "train" / "3").iterdir()).unlink()
    line = run("train.py", *SMALL, f"data.root={other}", cwd=tmp_path, code=2).stderr
    assert " was trained on image set " in line and line.endswith("or choose another output_dir\n")
    assert "is finished" in run("train.py", *SMALL, f"data.root={second}", cwd=tmp_path).stdout
