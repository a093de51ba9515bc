import numpy as np
import pytest
from photographs import make_imagenet
from PIL import Image

from data.browse import main


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


@pytest.mark.parametrize("overrides", [["experiment=digitz"], ["data.root=/nowhere"]])
def test_wrong_settings_are_one_line(overrides, capsys):
    with pytest.raises(SystemExit) as caught:
        main(overrides)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
