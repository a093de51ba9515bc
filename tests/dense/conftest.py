import pytest

from data.prepare.__main__ import main


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """14 training and 5 validation scenes, in COCO's and ADE20K's layout."""
    out = tmp_path_factory.mktemp("drawn") / "set"
    assert main(["shapes", "--out", str(out), "--images", "14", "--val", "5", "--size", "96"]) == 0
    return out
