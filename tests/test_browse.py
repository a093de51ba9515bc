from pathlib import Path

import numpy as np
import pytest
from photographs import make_imagenet
from PIL import Image

from cotnet.browse import main, write
from cotnet.errors import InputError


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return make_imagenet(tmp_path_factory.mktemp("few"), classes=3, train=1, val=1)


@pytest.mark.slow
@pytest.mark.long
def test_a_contact_sheet_of_a_recipe(tmp_path, capsys):
    root, out = make_imagenet(tmp_path / "set", classes=3, train=4, val=1), tmp_path / "sheets" / "advanced.png"
    overrides = ["data=imagenet", f"data.root={root}", "data.num_classes=3", "data.image_size=96", "logger=none"]
    main([*overrides, "augmentation=advanced", "--images", "5", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: 5 images, 7 columns\n"
    with Image.open(out) as sheet:
        assert sheet.size == (7 * 100, 16 + 5 * 112)
        pixels = np.asarray(sheet)
    pictures = pixels[16:].reshape(5, 112, 700, 3)[:, 16:].reshape(5, 96, 7, 100, 3)[:, :, :, :96].swapaxes(1, 2)
    central, dali, torchvision, difference, policy, erased, mixed = np.moveaxis(pictures, 1, 0).astype(int)
    assert (np.abs(dali - torchvision) * 16).clip(max=255).tolist() == difference.tolist()
    assert np.abs(central - dali).mean() > 5
    for before, after in ((dali, policy), (policy, erased), (erased, mixed)):
        assert (before != after).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=digitz"], "experiment=digitz is unknown"),
        (["data.root=/nowhere"], "/nowhere: no such folder"),
        (["data.num_classes=2"], "has 3 classes but data.num_classes is 2"),
        (["--images", "4"], "--images 4: the training set has 3; ask for at most these"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, few, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["data=imagenet", f"data.root={few}", "data.num_classes=3", "data.image_size=48", *arguments])
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("out", "reason"),
    [("/proc/no/sheet.png", "No such file or directory"), ("sheet.xyz", "unknown file extension: .xyz")],
)
def test_a_sheet_that_cannot_be_written(out, reason):
    with pytest.raises(InputError) as caught:
        write(Image.new("RGB", (3, 3)), Path(out))
    assert str(caught.value) == f"--out {out}: {reason}; give a file that can be written and ends in .png"
