"""A checkpoint or a file of weights that is damaged anywhere is noticed, and the line says what to use instead."""

import importlib
import json
import os
import random
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from programs import SMALL, run

from cotnet.config.run_folder import require_same_batches
from cotnet.engine import checkpoints
from cotnet.errors import InputError
from cotnet.integrity import checksum
from cotnet.models import cotnet_small
from cotnet.models.weights import load_weights

pytestmark = pytest.mark.slow


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, digits):
    """A run of two epochs, of which every checkpoint is kept."""
    folder = tmp_path_factory.mktemp("kept")
    given = [*SMALL, f"data.root={digits}", "checkpoint.keep_every=1", "output_dir=run"]
    run("train.py", *given, cwd=folder)
    return folder / "run"


def test_any_flipped_bit_is_noticed_or_changes_nothing(kept, tmp_path):
    whole = kept / "checkpoints" / "best.pt"
    content, size = checkpoints.load(whole), whole.stat().st_size
    chance, noticed = random.Random(0), 0
    for place in [size // 2, *(chance.randrange(size) for _ in range(60))]:
        shutil.copy(whole, tmp_path / "flipped.pt")
        flip(tmp_path / "flipped.pt", place, chance.randrange(8))
        try:
            read = checkpoints.load(tmp_path / "flipped.pt")
        except InputError as error:
            assert "flipped.pt is " in str(error) and "\n" not in str(error)
            noticed += 1
        else:
            assert checksum(read) == checksum(content)
    assert noticed > 50


def test_the_line_names_the_whole_checkpoint_that_is_furthest_on(kept, digits, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)  # copies: no hard links between the names
    last = folder / "checkpoints" / "last.pt"
    flip(last, last.stat().st_size // 2)
    given = [*SMALL, f"data.root={digits}", "checkpoint.keep_every=1", "output_dir=run"]
    line = run("train.py", *given, "train.epochs=3", cwd=tmp_path, code=2).stderr
    assert "last.pt is damaged or truncated (its checksum differs); run/checkpoints/" in line
    assert "is whole: use that one, or copy it over the damaged file to continue from step 8" in line
    best, second = folder / "checkpoints" / "best.pt", folder / "checkpoints" / "epoch_0002.pt"
    os.link(best, tmp_path / "kept.pt")
    best.unlink()
    flip(second, second.stat().st_size // 2)
    line = run("evaluate.py", f"checkpoint={last}", cwd=tmp_path, code=2).stderr
    assert "checkpoints/epoch_0001.pt is whole" in line and line.endswith("to continue from step 4\n")
    shutil.copy(folder / "checkpoints" / "epoch_0001.pt", last)
    done = run("train.py", *given, "train.epochs=3", cwd=tmp_path)
    assert "continuing run at epoch 1, step 4" in done.stdout


def test_a_file_that_ends_early_is_said_to(kept, tmp_path):
    """Too short to hold an archive's directory, as a download that stopped leaves it."""
    path = tmp_path / "short.pt"
    path.write_bytes((kept / "checkpoints" / "best.pt").read_bytes()[:5000])
    with pytest.raises(
        InputError, match=r"short\.pt is damaged or truncated \(it is no whole archive\); no whole checkpoint"
    ):
        checkpoints.load(path)


def test_files_of_the_version_before_have_no_checksum_and_are_checked_by_their_zip(kept, tmp_path):
    content = checkpoints.load(kept / "checkpoints" / "best.pt")
    del content["checksum"]
    old = tmp_path / "old.pt"
    torch.save(content, old)
    assert checksum(checkpoints.load(old)) == checksum(content)
    flip(old, old.stat().st_size // 2)
    with pytest.raises(InputError, match=r"old\.pt is damaged or truncated \(the checksum of old/data/\d+ differs\)"):
        checkpoints.load(old)


def test_published_files_are_checked_against_their_own_checksums(tmp_path):
    model = cotnet_small(num_classes=10)
    path = tmp_path / "cotnet_small.pth"
    torch.save(model.state_dict(), path)
    load_weights(model, path)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"is damaged: the checksum of .* differs; get it again"):
        load_weights(model, path)
    torch.save(model.state_dict(), path)
    named = path.rename(tmp_path / "cotnet_small-0badc0de.pth")
    with pytest.raises(InputError, match="its name says SHA-256 0badc0de, its content has "):
        load_weights(model, named)


def test_a_run_whose_batches_the_version_before_dealt_otherwise_is_refused(kept):
    path = kept / "checkpoints" / "last.pt"
    content = checkpoints.load(path)
    config = json.loads(content["config"])
    config["augmentation"]["repeats"] = 3
    for accumulation, known, refused in ((2, False, True), (2, True, False), (1, False, False)):
        config["train"]["accumulation"] = accumulation
        begun = {**content, "config": json.dumps(config)}
        if not known:
            del begun["checksum"]
        with pytest.raises(InputError, match="choose another output_dir") if refused else nullcontext():
            require_same_batches(begun, path)


@pytest.mark.parametrize("closed", ["closed.pt", "."])
def test_a_file_that_may_not_be_read_is_not_called_damaged(kept, closed):
    """The file, or the folder around it. Root may read everything, so evaluate.py then runs as another user."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "closed.pt"
        shutil.copy(kept / "checkpoints" / "best.pt", path)
        Path(folder).chmod(0o755)
        (Path(folder) / closed).chmod(0)
        importlib.import_module("cotnet.commands.evaluate")  # while this process may read it
        own = os.geteuid()
        if own == 0:
            os.seteuid(65534)
        try:
            done = run("evaluate.py", f"checkpoint={path}", "data.root=x", cwd=Path("/"), code=2)
        finally:
            os.seteuid(own)
            Path(folder).chmod(0o755)
    assert done.stderr.startswith(f"error: cannot access {path}")
    assert done.stderr.endswith("Permission denied; change its permissions\n")
