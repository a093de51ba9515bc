"""The form for GPUs, one kernel a turn, against the operations one by one: the same pixels, bit for bit.

The kernels run on the GPU, and in Triton's interpreter without one. The operations always run on the CPU.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from augmenting import MEAN, NONE, STD, batch, transform
from photographs import photographs
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from cotnet.benchmarks.roofline import OperatorTrace
from data.augmentation.fused import plan_turn, run_turn, together
from data.augmentation.operations import OPERATIONS, Canvas
from data.augmentation.policies import draw, parse
from data.augmentation.transform import apply_drawn, normalize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROOT = Path(__file__).resolve().parents[3]
FILL = (124, 116, 104)
FACTORS = (0.0, 0.73, 2.8)
RESAMPLED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
VALUES = {
    "posterize": (0, 1, 4, 8),
    "solarize": (0, 100, 255.5, 384),
    "solarize_add": (0, 50, 165),
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), FACTORS),
    "hue": (0.1, -0.37),
    "cutout": (0, 8, 60),
    **dict.fromkeys(("shear_x", "shear_y"), (0.3, -0.99)),
    **dict.fromkeys(("translate_x", "translate_y"), (7.0, -20.25, 150.0)),
    "rotate": (13.7, -45.0, 135.0),
}


def pictures(width=53, height=40):
    """Photographs of one odd size; one flat, one with an empty channel."""
    images = [image.resize((width, height)) for image in photographs()[:3]]
    images.append(Image.new("RGB", (width, height), (9, 9, 200)))
    images.append(
        Image.merge("RGB", (images[1].getchannel(0), Image.new("L", (width, height)), images[1].getchannel(2)))
    )
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


def both(images, names, drawn, parameters, interpolation="bicubic"):
    """The pixels of the fused form and of the operations one by one."""
    given = {"drawn": drawn, "parameters": parameters, "canvas": Canvas(interpolation, FILL)}
    kept = images.clone()
    expected = apply_drawn(images, names, fused=False, **given)
    on_device = images.to(DEVICE)
    found = apply_drawn(on_device, names, fused=True, **given).cpu()
    assert torch.equal(images, kept), "the given batch was changed"
    assert torch.equal(on_device.cpu(), kept), "the given batch was changed"
    return found, expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "interpolation"),
    [(name, "bicubic") for name in OPERATIONS] + [(name, "bilinear") for name in ("rotate", "shear_y", "translate_x")],
)
def test_every_operation(operation, interpolation):
    values, images = VALUES.get(operation, (0,)), pictures()
    images = images[:2] if operation in RESAMPLED else images  # 16 pixels for each: slow in the interpreter
    parameters = np.array([[[value, 0.3, 0.9]] for value in values for _ in images], dtype=float)
    images = images.repeat(len(values), 1, 1, 1)
    found, expected = both(images, (operation,), np.zeros((len(images), 1), dtype=int), parameters, interpolation)
    assert torch.equal(found, expected)
    if operation not in ("identity", "autocontrast"):
        assert not torch.equal(found, images)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 7), (40, 26)])
def test_small_images_whatever_is_drawn(shape):
    names = tuple(OPERATIONS)
    images = pictures(*shape[::-1]).repeat(3, 1, 1, 1)
    random = np.random.default_rng(0)
    drawn = random.integers(-1, len(names), (15, 2))
    parameters = random.uniform(0, 1, (15, 2, 3)) * [3, 1, 1]
    found, expected = both(images, names, drawn, parameters)
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rand-cot-m15-n2-mstd0.5", "trivial-wide"])
def test_policies(name):
    policy = parse(name)
    images = pictures(72, 64).repeat(4, 1, 1, 1)
    drawn, parameters = draw(policy, np.arange(20), seed=1, epoch=2, height=64, width=72)
    found, expected = both(images, policy.operations, drawn, parameters)
    assert torch.equal(found, expected)
    assert (found != images).flatten(1).any(1).float().mean() > 0.5


def test_nothing_drawn():
    images = pictures()
    found, _ = both(images, ("hue", "rotate"), np.full((5, 2), -1), np.zeros((5, 2, 3)))
    assert torch.equal(found, images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalising_by_table(dtype):
    images = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 5, 1)
    expected = normalize(images, MEAN, STD, dtype, fused=False)
    found = normalize(images.to(DEVICE), MEAN, STD, dtype, fused=True)
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), expected)


def test_one_copy_holds_arrays_of_any_type():
    arrays = [np.arange(3, dtype=np.int32), np.zeros((0, 3)), np.array([[1.5, 2.5]]), np.arange(5, dtype=np.uint8)]
    for found, array in zip(together(arrays, DEVICE), arrays, strict=True):
        assert np.array_equal(found.cpu().numpy(), array)
        assert found.cpu().numpy().dtype == array.dtype


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, *(pytest.param(epoch, marks=pytest.mark.long) for epoch in (1, 2))])
def test_a_batch_of_80_takes_at_most_150_launches(epoch):
    """RandAugment as in CoTNet's recipe, and normalising: the operators on the device. The copy of a turn is one more,
    which a CPU does not make."""
    policy, canvas = parse("rand-cot-m15-n2-mstd0.5"), Canvas("bicubic", FILL)
    images = torch.from_numpy(np.random.default_rng(epoch).integers(0, 256, (80, 3, 16, 16), dtype=np.uint8)).to(DEVICE)
    drawn, parameters = draw(policy, np.arange(80), seed=0, epoch=epoch, height=16, width=16)
    normalize(images, MEAN, STD, torch.float32, fused=True)  # keeps its table
    augmented, launches = images, 0
    for k in range(policy.count):
        turn = {"drawn": drawn[:, k], "parameters": parameters[:, k]}
        plan = plan_turn(policy.operations, **turn, canvas=canvas, height=16, width=16)
        with OperatorTrace() as trace:
            augmented = run_turn(augmented, plan, canvas)
        launches += trace.launches + (DEVICE.type == "cpu")
    with OperatorTrace() as trace:
        found = normalize(augmented, MEAN, STD, torch.float32, fused=True)
    assert trace.launches == 1
    assert 60 < launches + 1 <= 150
    with OperatorTrace() as one_by_one:
        given = {"drawn": drawn, "parameters": parameters, "canvas": canvas}
        expected = apply_drawn(images, policy.operations, fused=False, **given)
        expected = normalize(expected, MEAN, STD, torch.float32, fused=False)
    assert one_by_one.launches > 700
    assert torch.equal(found, expected) or DEVICE.type == "cuda"


class DividesAsCuda(TorchDispatchMode):
    """A quotient of a tensor and a number is, on CUDA, a product with the number's rounded reciprocal."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.div.Tensor and not torch.is_tensor(args[1]) and args[0].is_floating_point():
            return args[0] * torch.tensor(1 / args[1], dtype=torch.float64).to(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("operation", ["contrast", "hue"])
def test_divisions_round_once_on_a_gpu_too(operation):
    """Half of the pixels have the next level: the mean lies between two levels, where contrast rounds up, and the
    product with a reciprocal of 224 x 224 is often too small."""
    levels = torch.arange(0, 250, 25, dtype=torch.uint8)[:, None, None, None]
    images = (levels + (torch.arange(224) % 2).to(torch.uint8)).expand(-1, 3, 224, 224).contiguous()
    given = torch.full((len(images), 3), 0.3, dtype=torch.float64), Canvas("bicubic", FILL)
    expected = OPERATIONS[operation](images, *given)
    with DividesAsCuda():
        found = OPERATIONS[operation](images, *given)
    assert torch.equal(found, expected)


@pytest.mark.gpu
def test_the_transform_on_a_gpu_gives_the_pixels_of_the_cpu():
    images, targets, indices = batch(side=96)
    augment = transform(replace(NONE, policy="rand-cot-m15-n2-mstd0.5", color_jitter=0.4, hue=0.1))
    for epoch in range(10):
        expected, _ = augment(images, targets, indices, epoch)
        found, _ = augment(images.cuda(), targets.cuda(), indices, epoch)
        assert torch.equal(found.cpu(), expected)


@pytest.mark.slow
def test_the_kernels_compile_for_gpus():
    """Without a GPU; in a process of its own, because here kernels are interpreted. No product and sum is contracted
    that `operations.py` rounds twice: the only fused multiply-adds are those of the resampling's sums."""
    program = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from data.augmentation import kernels

names = ("images", "result", "codes", "numbers", "tables", "height", "width")
types = dict(zip(names, ("*u8", "*u8", "*i32", "*fp32", "*u8", "i32", "i32")))
constants = {"BICUBIC": True, "EMULATE": False, "BLOCK": kernels.BLOCK}
for capability in (80, 90):
    source = ASTSource(kernels.turn, {**types, **dict.fromkeys(constants, "constexpr")}, constants)
    options = {"enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    fused = len(re.findall(r"fma.rn.f32", made.asm["ptx"]))
    per_thread = kernels.BLOCK // (32 * made.metadata.num_warps)
    print(capability, fused == 16 * 3 * per_thread, fused, made.metadata.num_warps)
    source = ASTSource(kernels.levels, {"images": "*u8", "result": "*fp32", "table": "*fp32", "size": "i32",
                                        "BLOCK": "constexpr"}, {"BLOCK": kernels.BLOCK})
    triton.compile(source, target=GPUTarget("cuda", capability, 32))
    source = ASTSource(kernels.count, {"images": "*u8", "result": "*i32", "size": "i32", "BLOCK": "constexpr"},
                       {"BLOCK": kernels.HISTOGRAM_BLOCK})
    triton.compile(source, target=GPUTarget("cuda", capability, 32))
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["80", "True"], ["90", "True"]], done.stdout
