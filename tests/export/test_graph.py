"""The graph with preprocessing against the evaluation's loader; models that cannot be exported; folders."""

import numpy as np
import pytest
import torch
from nets import build
from photographs import photographs
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from cotnet.errors import InputError
from cotnet.export import formats, from_pretrained, load_exported, save_pretrained
from cotnet.export.graph import Preprocessing, WithPreprocessing
from cotnet.export.latency import table

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocessing(kind="bicubic"):
    return Preprocessing(eval_size=64, crop_ratio=0.875, eval_interpolation=kind, mean=MEAN, std=STD)


def pictures():
    """Photographs, wide and high, larger and smaller than the crop."""
    for photograph in photographs()[:4]:
        yield from (photograph, photograph.rotate(90, expand=True), photograph.resize((50, 41)))


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_pixels_are_those_of_pil_within_a_level(kind):
    """torchvision's resize and crop of PIL images, which define the evaluation's pixels."""
    graph, levels = WithPreprocessing(nn.Identity(), preprocessing(kind)), []
    for picture in pictures():
        resized = resize(picture, int(64 / 0.875), interpolation=InterpolationMode(kind), antialias=True)
        expected = pil_to_tensor(center_crop(resized, 64)).float()
        levels.append((graph.pixels(pil_to_tensor(picture).unsqueeze(0))[0] - expected).abs().numpy())
    assert np.max(levels) <= 1
    assert np.mean(np.array(levels) > 0) < 0.001


@pytest.mark.slow
def test_a_graph_with_preprocessing_takes_images_of_any_size(tmp_path):
    model = build("resnet_small").eval()
    graph = WithPreprocessing(model, preprocessing()).eval()
    formats.to_pt2(formats.trace(graph, torch.zeros(2, 3, 90, 70, dtype=torch.uint8)), tmp_path / "model.pt2", {})
    exported = load_exported(tmp_path / "model.pt2")
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for picture in pictures():
        resized = resize(picture, int(64 / 0.875), interpolation=InterpolationMode.BICUBIC, antialias=True)
        pixels = pil_to_tensor(center_crop(resized, 64)).unsqueeze(0)
        with torch.no_grad():
            expected = model((pixels / 255 - mean) / std).softmax(1)
        assert not pil_to_tensor(picture).is_contiguous()  # as PIL's pixels lie
        torch.testing.assert_close(exported(pil_to_tensor(picture).unsqueeze(0)), expected, rtol=0, atol=1e-3)


class Eigenvalues(nn.Module):
    def forward(self, images):
        return torch.linalg.eigvalsh(images @ images.transpose(2, 3)).mean(1)


class Branch(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) if images.mean() > 0 else images.amax((2, 3))


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_names_the_operator(tmp_path):
    images = torch.zeros(2, 3, 16, 16)
    with pytest.raises(InputError, match=r"^the model cannot be exported to ONNX: .*operator aten\._linalg_eigh"):
        formats.to_onnx(formats.trace(Eigenvalues(), images), tmp_path / "model.onnx", {}, output="logits")
    assert not (tmp_path / "model.onnx").exists()
    with pytest.raises(InputError, match=r"^the model cannot be exported to torch\.export: aten\._local_scalar_dense"):
        formats.trace(Branch(), images)


def test_a_folder_gives_the_same_model_again(tmp_path):
    model = build("cotnet_small", width=8).eval()
    save_pretrained(model, tmp_path, preprocessing=preprocessing(), classes=list("abcde"))
    read = from_pretrained(tmp_path)
    assert read.spec == model.spec and not read.training
    assert read.pretrained["preprocessing"] == preprocessing().as_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[key], value)
    text = (tmp_path / "config.json").read_text()
    for wrong, words in (
        (text.replace("cotnet_small", "os.system"), "is not one of cotnet.models"),
        (text[:40], "is damaged, or of another library"),
    ):
        (tmp_path / "config.json").write_text(wrong)
        with pytest.raises(InputError, match=words):
            from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no config\.json in "):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"the model has no spec; build it with a constructor of cotnet\.models"):
        save_pretrained(nn.Linear(2, 2), tmp_path / "linear")


def test_the_table_of_latencies_compares_with_its_first_row():
    models = {"one": nn.Conv2d(3, 8, 3), "two": nn.Conv2d(3, 64, 7)}
    head, *rows = table(models, torch.zeros(1, 3, 32, 32))
    assert head.split()[:3] == ["milliseconds", "per", "call"]
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == ["one", "two"] and cells[0][3] == "1.00x"
    assert all(0 < float(row[1]) <= float(row[2]) for row in cells)
