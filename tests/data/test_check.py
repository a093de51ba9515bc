import json

import numpy as np
import pytest
import torch
from photographs import make_imagenet, photographs
from PIL import Image

from cotnet.errors import DataError
from cotnet.files import locked
from data.check import main
from data.loading.dali import DaliLoader
from data.loading.plan import EvaluationPlan
from data.sets.read import read_split


@pytest.fixture
def root(tmp_path):
    return make_imagenet(tmp_path / "set", classes=2, train=4, val=2)


def check(capsys, *arguments):
    code = main([*map(str, arguments), "--workers", "2"])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def test_bad_files_are_named_and_left_out(root, capsys):
    folder = root / "train" / "n01440764"
    photograph = photographs()[0].resize((60, 50))
    victim = sorted(folder.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:900])
    (folder / "empty.JPEG").touch()
    (folder / "notes.txt").write_text("no image")
    photograph.save(folder / "animation.gif")
    photograph.save(folder / "disguised.JPEG", format="GIF")
    photograph.save(folder / "modern.avif")
    photograph.save(folder / "wrong.JPEG", format="PNG")
    Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)).save(folder / "deep.png")
    Image.fromarray(np.arange(2000, dtype=np.float32).reshape(40, 50)).save(folder / "float.tiff")
    photographs()[0].save(folder / "zeros.JPEG", quality=90)
    content = (folder / "zeros.JPEG").read_bytes()
    (folder / "zeros.JPEG").write_bytes(content[:-9000] + bytes(9000))  # as of a copy that was interrupted
    twin = sorted((root / "train" / "n01443537").iterdir())[0]
    (root / "val" / "n01443537" / "twin.JPEG").write_bytes(twin.read_bytes())
    code, lines, _ = check(capsys, root)
    assert code == 0
    text = "\n".join(lines)
    assert f"{victim}: damaged image (" in text
    assert f"{folder / 'empty.JPEG'}: damaged image (not an image) (excluded)" in text
    assert f"{folder / 'notes.txt'}: damaged image (not an image) (excluded)" in text
    assert f"{folder / 'animation.gif'}: unsupported format GIF (excluded)" in text
    assert f"{folder / 'modern.avif'}: unsupported format AVIF (excluded)" in text
    assert f"{folder / 'disguised.JPEG'}: unsupported format GIF (excluded)" in text
    assert f"{folder / 'float.tiff'}: unsupported: levels of PIL's mode F (excluded)" in text
    assert f"{folder / 'zeros.JPEG'}: does not end as a JPEG does: other data behind the image, or zeros" in text
    assert text.count("does not end as a JPEG does") == 1
    assert f"{folder / 'deep.png'}" not in text
    assert f"{folder / 'wrong.JPEG'}: wrongly named: a PNG file" in text
    assert f"twin.JPEG: the same file as {twin}, in the other split" in text
    assert lines[-1].endswith("2 classes, 10 train images (7 excluded), 5 val images (0 excluded)")
    train = read_split(root, "train")
    assert train.excluded == 7
    assert len(train.left_out) == 4, "those with the ending of an image"
    images = sorted(path for path in (root / "train").glob("*/*") if path.suffix in (".JPEG", ".png", ".tiff"))
    left = [str(path.relative_to(root / "train")) for i, path in enumerate(images) if i not in train.left_out]
    assert left == list(train.files)
    assert "n01440764/wrong.JPEG" in train.files
    plan = EvaluationPlan(samples=len(train.files), batch_size=4, rank=0, world_size=1, image_size=32, crop_ratio=0.875)
    loader = DaliLoader(train, plan, output_device=torch.device("cpu"), interpolation="bilinear", threads=1, prefetch=1)
    assert sum(len(batch.indices) for batch in loader.batches(0)) == 12
    loader.close()


def test_a_set_that_another_process_writes_is_not_checked(root, capsys):
    with locked(root.parent / ".set.lock"):
        assert check(capsys, root) == (2, [], f"{root} is in use by another process; wait for it\n")
    assert not (root / "manifest.json").exists()
    assert check(capsys, root)[0] == 0
    with locked(root.parent / ".set.lock"):
        assert check(capsys, root, "--full")[0] == 0  # which writes nothing
    assert check(capsys, root.parent / "nothing" / "here")[0] == 2
    assert sorted(path.name for path in root.parent.iterdir()) == [".set.lock", "set"]
    assert sorted(path.name for path in root.iterdir()) == ["manifest.json", "train", "val"]


def test_full_comparison_finds_changed_content(root, capsys):
    assert check(capsys, root, "--full")[0] == 2
    check(capsys, root)
    assert check(capsys, root, "--full") == (0, [f"{root}: 0 differences from manifest.json"], "")
    first, second, *_ = sorted((root / "train" / "n01440764").iterdir())
    first.write_bytes(first.read_bytes() + b"\0")
    second.unlink()
    code, lines, _ = check(capsys, root, "--full")
    assert code == 1
    assert lines == [f"{second}: missing", f"{first}: changed", f"{root}: 2 differences from manifest.json"]


def test_what_cannot_be_checked_or_used(root, capsys):
    assert check(capsys, root / "nowhere")[0] == 2
    (root.parent / "list.csv").touch()
    assert "list.csv: a file; give the folder that holds train/ and val/" in check(capsys, root.parent / "list.csv")[2]
    with pytest.raises(SystemExit):
        main([str(root), "--workers", "0"])
    assert "'0' is not a whole number above 0" in capsys.readouterr().err
    (root / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest of this version; run python -m data\.check"):
        read_split(root, "train")
    (root / "manifest.json").write_text(json.dumps({"version": 1, "classes": [], "splits": {}}))
    with pytest.raises(DataError, match="has no split train"):
        read_split(root, "train")
    (root / "manifest.json").unlink()
    for path in (root / "val" / "n01440764").iterdir():
        path.write_bytes(b"")
    code, _, error = check(capsys, root)
    assert code == 2
    victim = sorted((root / "val" / "n01440764").iterdir())[0].name
    reason = f"(n01440764/{victim}: damaged image (not an image))"
    assert error == f"{root}/val: class folders without a usable image: n01440764 {reason}; add some or remove them\n"
    assert not (root / "manifest.json").exists()
