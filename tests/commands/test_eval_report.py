"""The published figures beside a result."""

from cotnet.commands import eval_report
from cotnet.commands.eval_worker import Leaf


def leaf(of="val", *, size=224, crop_ratio=0.875, kind="bilinear"):
    settings = {"crop_ratio": crop_ratio, "eval_interpolation": kind}
    return Leaf(set=of, size=size, folder="x", inputs={"settings": settings})


def config(name="resnet50", classes=1000):
    return {"backbone": {"_target_": "cotnet.models.timm_model", "model_name": name, "num_classes": classes}}


def test_only_the_same_settings_are_shown():
    found = eval_report.published(config(), leaf())
    assert {"model": "resnet50.tv_in1k", "top1": 76.156, "top5": 92.866} in found
    assert all(one["model"].startswith("resnet50.") for one in found)
    assert [one["top1"] for one in eval_report.published(config("resnet50.tv_in1k"), leaf("real"))] == [82.969]
    assert [one["top1"] for one in eval_report.published(config(), leaf("r"))][:1] == [36.157]
    own = {"backbone": {"_target_": "cotnet.models.resnet50", "num_classes": 1000}}
    assert eval_report.published(own, leaf("v2"))[0]["top1"] == 63.19
    for other in (leaf(size=256), leaf(crop_ratio=0.95), leaf(kind="bicubic"), leaf("c/snow")):
        assert {"model": "resnet50.tv_in1k", "top1": 76.156, "top5": 92.866} not in eval_report.published(
            config(), other
        )
    assert eval_report.published(config(classes=10), leaf()) == []
