"""python -m cotnet.export: its files in the programs that they are for, and evaluate.py on them."""

import csv
import json

import huggingface_hub
import onnx
import onnxruntime
import pytest
import torch
from hub_server import hub
from huggingface_hub import ModelCard
from programs import SMALL, checkpoint, once, run
from timm.models import load_checkpoint

from cotnet import models
from cotnet.commands import export_files
from cotnet.errors import RunError
from cotnet.export import from_pretrained, load_exported
from cotnet.export.runtime import compared

pytestmark = pytest.mark.slow
PROGRAM = "cotnet.export.__main__"
LOADER = "loader=torchvision"


@pytest.fixture(scope="session")
def trained(shared, digits):
    """A run of a few steps of resnet_small, whose averaged weights differ from the raw ones."""
    given = [*SMALL, "backbone=resnet_small", f"data.root={digits}", LOADER, "output_dir=run"]
    return once(shared, "export-run", lambda folder: run("train.py", *given, cwd=folder)) / "run"


@pytest.fixture(scope="session")
def exported(shared, trained):
    """The folder with the run as ONNX, int8 and torch.export's file; lines.txt has the printed lines."""

    def make(folder):
        lines = ""
        for kind, more in (("onnx", ["quantize=int8", "latency=false"]), ("pt2", [])):
            given = [f"checkpoint={trained}", LOADER, f"format={kind}", "output_dir=."]
            lines += run(PROGRAM, *given, *more, cwd=folder).stdout
        (folder / "lines.txt").write_text(lines)

    return once(shared, "exported", make)


def model_of(trained, part="ema"):
    model = models.resnet_small(num_classes=10)
    model.load_state_dict(checkpoint(trained, "best.pt")[part])
    return model.eval()


def test_onnx_runtime_gives_the_same_logits_for_any_batch_and_size(trained, exported):
    path = exported / "model.onnx"
    proto = onnx.load(path)
    assert [(one.domain, one.version) for one in proto.opset_import if one.domain in ("", "ai.onnx")] == [("", 20)]
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}  # no custom operator
    session, model = onnxruntime.InferenceSession(path), model_of(trained)
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 3, 32, 32), (5, 3, 40, 64)):
        images = torch.randn(shape, generator=generator)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=0, atol=1e-5)
    lines = (exported / "lines.txt").read_text().splitlines()
    assert lines[0].startswith("model.onnx: at most ") and lines[0].endswith("on 17 images (allowed: 0.0001)")
    assert lines[2].startswith("model.pt2: at most ") and lines[2].endswith("on 17 images (allowed: 1e-06)")


def test_exported_files_are_evaluated_as_their_checkpoint_is(trained, exported, digits, tmp_path):
    """Same figures, predictions and report; several of them are compared."""
    given = [LOADER, f"data.root={digits}", "data.eval_batch_size=16"]
    files = [f"{exported}/model.onnx", f"{exported}/model_int8.onnx"]
    run("evaluate.py", f"checkpoint=[{','.join(files)}]", *given, "output_dir=exported", cwd=tmp_path)
    run("evaluate.py", f"checkpoint={trained}", *given, "precision=fp32", "output_dir=ours", cwd=tmp_path)
    ours = json.loads((tmp_path / "ours" / "metrics.json").read_text())
    rows = list(csv.DictReader((tmp_path / "ours" / "predictions.csv").open()))
    other = ["data.mean=[0.4,0.4,0.4]", "output_dir=other"]
    said = run("evaluate.py", f"checkpoint={files[0]}", *given, *other, cwd=tmp_path).stdout
    assert "data.mean=[0.4,0.4,0.4] differs from the checkpoint's [0.5,0.5,0.5]" in said
    for path in sorted((tmp_path / "exported").glob("*/metrics.json")):
        theirs = json.loads(path.read_text())
        assert theirs.keys() == ours.keys()
        for key in ("images", "parameters", "multiply_adds", "settings", "image_set"):
            assert theirs[key] == ours[key], key
        assert (path.parent / "report.html").exists()
        if "int8" in path.parent.name:  # the line that the export printed says the same
            line = (exported / "lines.txt").read_text().splitlines()[1]
            assert f"model.onnx {ours['top1']:.2f} %, model_int8.onnx {theirs['top1']:.2f} %" in line
            continue
        assert (theirs["top1"], theirs["top5"]) == (ours["top1"], ours["top5"])
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
        other = list(csv.DictReader((path.parent / "predictions.csv").open()))
        assert [(row["file"], row["top1"]) for row in other] == [(row["file"], row["top1"]) for row in rows]
    assert len(json.loads((tmp_path / "exported" / "comparison.json").read_text())["comparisons"]) == 1


def test_the_folder_holds_a_card_that_hubs_read_and_a_model(trained, digits, tmp_path):
    run("evaluate.py", f"checkpoint={trained}", LOADER, "output_dir=figures", cwd=tmp_path)
    given = [f"checkpoint={trained}", LOADER, "format=safetensors", "license=mit"]
    run(PROGRAM, *given, "evaluation=figures", "output_dir=hub", cwd=tmp_path)
    figures = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.license, card.data.library_name, card.data.metrics) == ("mit", "cotnet", ["accuracy"])
    top1, top5 = card.data.eval_results
    assert top1.metric_value == round(figures["top1"], 4) and top5.metric_value == round(figures["top5"], 4)
    low, high = figures["top1_interval"]
    for line in (f"| top-1, % | {figures['top1']:.2f} | {low:.2f} to {high:.2f} |", "| `train.batch_size` | `20` |"):
        assert line in card.content
    model = from_pretrained(tmp_path / "hub")
    assert model.pretrained["classes"] == [str(digit) for digit in range(10)]
    assert model.pretrained["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    for key, value in model_of(trained).state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    (tmp_path / "empty").mkdir()
    for evaluation, weights, words in (
        ("empty", "ema", "evaluation=empty holds no metrics.json; run evaluate.py with output_dir=empty first"),
        ("figures", "raw", "is of other weights than"),
    ):
        wrong = [*given, f"evaluation={evaluation}", f"weights={weights}", "output_dir=wrong"]
        done = run(PROGRAM, *wrong, cwd=tmp_path, code=2)
        assert words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "wrong").exists()


def test_a_folder_is_uploaded_only_when_asked(trained, tmp_path, monkeypatch):
    """huggingface_hub against a server of the loopback: a private repository gets the three files, byte for byte."""
    run("evaluate.py", f"checkpoint={trained}", LOADER, "output_dir=figures", cwd=tmp_path)
    given = [f"checkpoint={trained}", LOADER, "format=safetensors", "license=mit", "evaluation=figures"]
    with hub() as (address, held):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        run(PROGRAM, *given, "output_dir=kept", cwd=tmp_path)
        assert held == {"repositories": [], "files": {}}
        done = run(PROGRAM, *given, "push=me/it", "output_dir=hub", cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == "uploaded to me/it"
        (asked,) = held["repositories"]
        private = asked.get("private") or asked.get("visibility") == "private"  # older versions, newer versions
        assert (asked["name"], asked["organization"], private) == ("it", "me", True)
        assert held["files"] == {path.name: path.read_bytes() for path in (tmp_path / "hub").glob("[!.]*")}
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        done = run(PROGRAM, *given, "push=me/it", "output_dir=refused", cwd=tmp_path, code=2)
    assert "push=me/it: the hub did not take refused" in done.stderr and done.stderr.count("\n") == 1
    done = run(PROGRAM, *given, "push=me/it", "output_dir=unreachable", cwd=tmp_path, code=2)
    assert "then `hf upload me/it unreachable`" in done.stderr and done.stderr.count("\n") == 1
    for folder in ("refused", "unreachable"):
        assert from_pretrained(tmp_path / folder).spec.name == "resnet_small"


def test_timm_reads_averaged_and_raw_weights(trained, tmp_path):
    run(PROGRAM, f"checkpoint={trained}", LOADER, "format=timm", "output_dir=.", cwd=tmp_path)
    for use_ema, part in ((True, "ema"), (False, "model")):
        model = models.resnet_small(num_classes=10)
        load_checkpoint(model, str(tmp_path / "model.pth"), use_ema=use_ema)
        for key, value in checkpoint(trained, "best.pt")[part].items():
            assert torch.equal(model.state_dict()[key], value)


def test_a_file_that_differs_from_pytorch_is_refused(trained, exported):
    """The raw weights are not the averaged ones that were exported."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    path = exported / "model.onnx"
    difference = compared(model_of(trained, "model"), load_exported(path), [images], bound=1e-4)
    with pytest.raises(RunError, match=r"differs from PyTorch by .*, allowed is 0.0001; do not trust this file"):
        export_files.require_small(difference, path)


def test_mistakes_are_one_line(trained, exported, digits, tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes((exported / "model.onnx").read_bytes()[:5000])
    graph = [f"checkpoint={exported}/model.onnx", f"data.root={digits}", LOADER]
    ours = [f"checkpoint={trained}", LOADER]
    cases = (
        ("evaluate.py", [*graph, "fuse=true"], "is an exported graph, which runs as it is; set fuse=false"),
        ("evaluate.py", [*graph, "precision=bf16"], "set precision=fp32"),
        ("evaluate.py", [f"checkpoint={exported}/model.pt2", *graph[1:]], "its export of format=onnx"),
        ("evaluate.py", ["checkpoint=cut.onnx", *graph[1:]], "cut.onnx is no whole exported model"),
        (PROGRAM, [*ours, "format=onnx", "images=nowhere"], "images: no file nowhere"),
        (PROGRAM, [*ours, "format=onnx", "data.root=nowhere"], "set images=FOLDER or data.root=DIR"),
        (PROGRAM, [*ours, "format=safetensors", "push=me/it"], "give its folder, evaluation=FOLDER"),
        (PROGRAM, [*ours, "format=timm", "quantize=int8"], "quantize=int8 is for format=onnx; leave it out for timm"),
        (PROGRAM, [*ours, "format=onx"], "format=onx is unknown; did you mean onnx?"),
    )
    for program, given, words in cases:
        done = run(program, *given, "output_dir=out", cwd=tmp_path, code=2)
        assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_aoti_and_its_latency(trained, tmp_path):
    given = [f"checkpoint={trained}", LOADER, "format=aoti", "preprocessing=true", "latency=true", "output_dir=."]
    lines = run(PROGRAM, *given, cwd=tmp_path).stdout.splitlines()
    assert lines[0].endswith("on 8 images (allowed: 1e-06)") and "preprocessing in the graph: pixels" in lines[1]
    assert [line.split("  ")[0] for line in lines[-3:]] == ["PyTorch, eager", "PyTorch, compiled", "model_aoti.pt2"]
    assert load_exported(tmp_path / "model_aoti.pt2").about["inside"] is True
