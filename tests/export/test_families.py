"""Every family exports to ONNX and to torch.export's file, and both give PyTorch's logits on photographs, whatever
their number and size."""

import pytest
import torch
from nets import build
from photographs import photographs
from torchvision.transforms.v2.functional import pil_to_tensor

from cotnet.export import formats, load_exported
from cotnet.export.runtime import compared

FAMILIES = {
    "cotnet50": {},
    "cotnext50_2x48d": {},
    "se_cotnetd_50": {},
    "resnest50": {},
    "botnet50": {"image_size": 224},
    "pvt_tiny": {"image_size": 224},
    "pvt_v2_b0": {},
    "cotnet_small": {"width": 8},
    "sknet50": {},
    "halonet50": {},
    "aa_resnet50": {"image_size": 224},
    "lambda_resnet50": {},
    "non_local50": {},
}
SIDE = {"cotnet_small": 32, "stand_alone": 32, "local_relation": 32}


OPERATORS = ("stand_alone", "local_relation")  # their networks of 50 layers take minutes


def images(count, height, width):
    """(count, 3, height, width): photographs, normalised."""
    sized = [pil_to_tensor(photograph.resize((width, height))) for photograph in photographs()[:count]]
    return (torch.stack(sized) / 255 - 0.45) / 0.23


@pytest.mark.long
@pytest.mark.parametrize("name", [*FAMILIES, *OPERATORS])
def test_a_family_exports(name, tmp_path):
    settings = {"operator": name} if name in OPERATORS else FAMILIES[name]
    model, side = build("operator_small" if name in OPERATORS else name, **settings).eval(), SIDE.get(name, 224)
    program = formats.trace(model, torch.zeros(2, 3, side, side))
    operators = {str(node.target) for node in program.graph.nodes if "::" in getattr(node.target, "_name", "")}
    assert all(operator.startswith("aten.") for operator in operators)  # no custom operator
    batches = [images(2, side, side), images(1, side, side)]
    if name != "halonet50":  # whose last maps are one block at 224 px, which torch.export takes for granted
        batches.append(images(3, side + 32, side + 64))
    formats.to_onnx(program, tmp_path / "model.onnx", {}, output="logits")
    formats.to_pt2(program, tmp_path / "model.pt2", {})
    for file, bound in (("model.onnx", 1e-4), ("model.pt2", 1e-6)):
        difference = compared(model, load_exported(tmp_path / file), batches, bound=bound)
        print(f"{name} {file}: {difference.largest:.1e}")
        assert difference.small, (file, difference)
