import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from programs import make_digits

from cotnet import doctor
from cotnet.commands import checks
from cotnet.config.compose import compose
from data.check import check
from data.sets.read import read_split

pytestmark = pytest.mark.slow


def page_of(capsys, *overrides, code=0):
    """What the program prints and its errors; it must exit with `code`."""
    with pytest.raises(SystemExit) as end:
        doctor.main(overrides)
    assert int(end.value.code or 0) == code
    return capsys.readouterr()


def test_one_page_about_the_machine_and_a_run(tmp_path, capsys):
    root = make_digits(tmp_path / "digits", train=3, val=1)
    (root / "train" / "3" / "broken.png").write_bytes(b"no image")
    check(root, workers=1)
    given = ["experiment=digits", f"data.root={root}", "train.batch_size=10", "loader=torchvision", "logger=none"]
    page = page_of(capsys, *given).out
    found = dict(re.findall(r"^  (\S[\w &+]*?) {2,}(.+)$", page, re.MULTILINE))
    assert found["torch"].startswith(str(torch.__version__).split("+")[0])
    assert found["images"] == f"30 to train on, 10 to evaluate, in {root}: checked, 1 excluded"
    assert found["classes"] == "10: 0, 1, 2, 3, ..."
    assert found["loader"].startswith("TorchvisionLoader, decodes on the CPU, 4 threads per rank")
    assert {
        "processor",
        "driver",
        "C compiler",
        "C++ compiler",
        "DALI",
        "decoders",
        "W&B",
        "device",
        "logger",
    } <= found.keys()
    assert len(page.splitlines()) < 40


def test_a_run_that_cannot_start(capsys):
    done = page_of(capsys, "experiment=digits", "data.root=nowhere", code=1)
    assert "REFUSED        data.root=nowhere: no such folder" in done.out
    assert "backbone=cotnet5 is unknown" in page_of(capsys, "backbone=cotnet5", code=2).err


@pytest.mark.parametrize("given", [[], ["loader.device=cpu"], ["loader=torchvision"]])
def test_images_that_a_gpu_decodes_should_be_checked(given, digits, monkeypatch):
    config = compose("train", ["experiment=digits", f"data.root={digits}", *given])
    images = read_split(digits, "train")
    assert checks.unchecked_line(config, images) is None  # without a GPU
    monkeypatch.setattr(checks, "device", lambda: torch.device("cuda"))
    line = checks.unchecked_line(config, images)
    assert (line is None) == bool(given)
    if line:
        assert line.endswith(f"without an error: run python -m data.check {digits} once")
    assert checks.unchecked_line(config, replace(images, sizes=np.ones((len(images.files), 2), dtype=int))) is None
