"""RoIAlign's gradient of the same bits every time: its Triton kernel on a GPU, or in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from operator_names import OperatorNames
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from cotnet import ops
from cotnet.ops import roi_align as module
from cotnet.ops import roi_align_triton
from cotnet.ops.roi_align import roi_align
from cotnet.ops.roi_align_triton import differentiate, pool

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(channels=5, size=(19, 27), boxes=12, images=2, device=DEVICE):
    """Features, and boxes at stride 4: within and beyond the border, of no area, of whole pixels per bin."""
    generator = torch.Generator().manual_seed(boxes)
    features = torch.randn(images, channels, *size, generator=generator)
    image = torch.randint(0, images, (boxes,), generator=generator).sort().values
    border = 4 * torch.tensor([size[1], size[0]])
    corner = 1.2 * border * torch.rand(boxes, 2, generator=generator) - 10
    side = border * torch.rand(boxes, 2, generator=generator) ** 2
    for row, given in enumerate([(0.0, 9.0), (-3.0, -3.0), (28.0, 56.0), (400.0, 400.0)][:boxes]):
        side[row] = torch.tensor(given)
    rois = torch.cat([image[:, None], corner, corner + side], 1)
    return features.to(device).requires_grad_(), rois.to(device)


def theirs(features, rois, side):
    return torch.ops.torchvision.roi_align(features, rois, 0.25, side, side, -1, aligned=True)


def check(features, rois, side):
    ours, expected = pool(features, rois, side, 0.25), theirs(features, rois, side)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)).to(features.device)
    (found,) = torch.autograd.grad(ours, features, upstream)
    assert torch.equal(ours, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, torch.autograd.grad(expected, features, upstream)[0].contiguous(), rtol=1e-5, atol=2e-6)
    return found


@pytest.mark.parametrize(
    ("side", "case"),
    [
        (2, {"boxes": 5}),
        (3, {"boxes": 0}),
        (3, {"boxes": 3, "size": (1, 2), "channels": 1}),
        pytest.param(7, {}, marks=pytest.mark.slow),
        pytest.param(7, {"channels": 40, "images": 3, "boxes": 6}, marks=pytest.mark.slow),
        pytest.param(14, {"images": 1, "boxes": 4, "size": (9, 12)}, marks=pytest.mark.slow),
    ],
)
def test_the_gradient_is_torchvisions(side, case):
    check(*inputs(**case), side)


@pytest.mark.slow
def test_the_operator_is_well_defined():
    """Schema, fake tensors and autograd agree with what runs."""
    features, rois = inputs(channels=2, size=(5, 6), boxes=5)
    torch.library.opcheck(pool, (features, rois, 2, 0.25))


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_runs_on_a_gpu(deterministic, monkeypatch):
    """Never torchvision's form in Python, which fills the memory: on CUDA tensors without any, so without a GPU."""
    monkeypatch.setattr(ops, "TRITON", True)
    monkeypatch.setattr(module, "roi_align_triton", roi_align_triton, raising=False)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        with FakeTensorMode(), OperatorNames() as ran:
            features, rois = torch.empty(2, 8, 20, 30, device="cuda"), torch.empty(6, 5, device="cuda")
            assert roi_align(features, rois, side=7, scale=0.25).shape == (6, 8, 7, 7)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert ran.names - {"aten::empty", "prim::device"} == {
        "cotnet::roi_align" if deterministic else "torchvision::roi_align"
    }


COMPILE = """
import json, sys, torch, triton
from cotnet.benchmarks.compiled_kernels import CompileTarget, counts
from cotnet.ops.roi_align_kernels import add_boxes
def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")
for capability in (80, 90, 100):
    triton.runtime.driver.set_active(CompileTarget(capability))
    how = dict(scale=0.25, DEPTH=256, HEIGHT=200, WIDTH=304, SIDE=7, TILE=8, CHANNELS=32)
    how |= dict(UPSTREAM=meta(512, 7, 7, 256), ROIS=meta(512, 5), RESULT=meta(2, 200, 304, 256))
    how |= dict(FIRST=meta(3, dtype=torch.int64))
    print(json.dumps(counts(add_boxes.warmup(grid=(1, 1, 1), **how).asm["cubin"])["spilled_bytes"]))
"""


@pytest.mark.slow
def test_it_compiles_for_gpus_and_spills_nothing(tmp_path):
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0", "0"], done.stderr


@pytest.mark.gpu
def test_the_same_bits_twice_on_the_gpu():
    case = inputs(channels=256, size=(200, 304), boxes=1024)
    assert torch.equal(check(*case, 7), check(*case, 7))
    assert torch.equal(check(*case, 14), check(*case, 14))
    empty = differentiate(torch.empty(0, 4, 7, 7, device="cuda"), torch.empty(0, 5, device="cuda"), [2, 4, 9, 9], 0.25)
    assert not empty.any()
