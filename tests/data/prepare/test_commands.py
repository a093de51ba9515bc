"""What the commands share: work in processes that leaves nobody behind, and one process for a set at a time."""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cotnet.errors import DataError
from cotnet.files import locked
from data.prepare.commands import claimed, in_processes

pytestmark = pytest.mark.slow


def touch_slowly(path):
    path.with_suffix(".begun").touch()
    time.sleep(0.5)
    path.touch()
    if path.name == "bad":
        raise DataError("bad")
    return path.name


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_results_come_in_order(tmp_path):
    items = [tmp_path / str(number) for number in range(4)]
    assert list(in_processes(touch_slowly, items, workers=4, title="")) == ["0", "1", "2", "3"]
    assert list(in_processes(touch_slowly, [], workers=2, title="")) == []


@pytest.mark.parametrize("chunk", [1, 3])
def test_what_runs_is_finished_and_nothing_else_begins(tmp_path, chunk):
    """The caller gives up at the first result, as after Ctrl-C: two workers are at the next items by then."""
    results = in_processes(
        touch_slowly, [tmp_path / str(number) for number in range(9)], workers=2, title="", chunk=chunk
    )
    assert next(results) == "0"
    results.close()
    left = names(tmp_path)
    assert sum(name.endswith(".begun") for name in left) <= 2 + 2 * chunk
    assert [name for name in left if name.endswith(".begun")] == [f"{name}.begun" for name in left if name.isdecimal()]
    time.sleep(1.2)
    assert names(tmp_path) == left


def test_an_error_ends_every_worker(tmp_path):
    with pytest.raises(DataError, match="bad"):
        list(in_processes(touch_slowly, [tmp_path / name for name in ("bad", *"123456789")], workers=2, title=""))
    left = names(tmp_path)
    assert len([name for name in left if name.endswith(".begun")]) <= 4
    time.sleep(1.2)
    assert names(tmp_path) == left


def test_a_lock_is_held_by_one_and_freed_at_the_end(tmp_path):
    path = tmp_path / ".lock"
    with locked(path):
        with pytest.raises(BlockingIOError) as caught, locked(path):
            pass
        assert caught.value.filename == str(path)
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path):
        pass
    assert names(tmp_path) == [".lock"]
    with pytest.raises(FileNotFoundError), locked(tmp_path / "nowhere" / ".lock"):
        pass


def test_a_place_is_claimed_by_whatever_name(tmp_path, monkeypatch):
    place = tmp_path / "sets" / "digits"
    place.mkdir(parents=True)
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(place)
    with claimed(place):
        for name in (place, tmp_path / "link", Path(), Path("../digits")):
            with pytest.raises(DataError) as caught, claimed(name):
                pass
            assert str(caught.value) == f"{name} is in use by another process; wait for it or choose another --out"
    assert names(place.parent) == [".digits.lock", "digits"]
    with pytest.raises(BlockingIOError), claimed(place):  # of the work itself: not ours to explain
        raise BlockingIOError


@pytest.mark.skipif(os.geteuid() != 0, reason="takes on another user's rights")
def test_below_a_folder_of_somebody_else_the_lock_lies_inside():
    """A mounted disk may be ours where the folder above it is not."""
    with TemporaryDirectory() as above:  # pytest's own folder is closed to others
        place = Path(above) / "mounted"
        place.mkdir()
        Path(above).chmod(0o755)
        os.chown(place, 65534, 65534)
        os.seteuid(65534)
        try:
            with claimed(place):
                assert names(place) == [".lock"]
                with pytest.raises(DataError, match="is in use"), claimed(place):
                    pass
            with pytest.raises(PermissionError), claimed(Path(above) / "other"):
                pass
        finally:
            os.seteuid(0)
