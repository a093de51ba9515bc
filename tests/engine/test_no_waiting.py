"""The host never waits for the GPU within a step: every call that would is listed here with its reason."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cotnet import parts
from cotnet.benchmarks.loop import LoopBench
from cotnet.config.compose import compose
from cotnet.engine.distributed import Ranks
from cotnet.engine.step import train_step

ROOT = Path(__file__).resolve().parent.parent.parent
STEP = ("cotnet/engine/step.py", "cotnet/engine/training.py", "cotnet/engine/losses.py", "data/augmentation/*.py")
# Methods and functions of tensors that copy to the host, or need a size that only the device knows.
WAITING = {
    *("item", "cpu", "tolist", "numpy", "nonzero", "argwhere", "synchronize", "unique", "masked_select", "bincount"),
    *("is_nonzero", "equal", "allclose", "repeat_interleave", "tensor_split", "multinomial", "isin"),
}
# (file, function, call) -> why it does not wait within a step.
ALLOWED = {
    ("cotnet/engine/training.py", "log", "tolist"): "a log line: the figures of many steps in one copy",
    ("data/augmentation/transform.py", "__call__", "numpy"): "the indices, which are on the CPU",
    ("data/augmentation/fused.py", "plan_turn", "numpy"): "tables and coefficients, which are made on the CPU",
    ("data/augmentation/fused.py", "together", "tolist"): "NumPy's: where arrays lie in one copy",
}


def waiting_calls():
    """(file, innermost function, name) of every call that may wait."""
    found = set()
    for path in (path for pattern in STEP for path in sorted(ROOT.glob(pattern))):
        name = str(path.relative_to(ROOT))

        def visit(node, function, name=name):
            if isinstance(node, ast.FunctionDef):
                function = node.name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                numpy = isinstance(node.func.value, ast.Name) and node.func.value.id == "np"
                if node.func.attr in WAITING and not numpy:
                    found.add((name, function, node.func.attr))
            for child in ast.iter_child_nodes(node):
                visit(child, function)

        visit(ast.parse(path.read_text()), "")
    return found


def test_every_call_that_may_wait_is_listed():
    assert waiting_calls() == ALLOWED.keys()


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", ["cotnet50", "resnet50"])
def test_ten_steps_do_not_wait(backbone, tmp_path):
    """Augmentation, step, averaged weights: torch raises an error where the host would wait."""
    given = [f"backbone={backbone}", "augmentation=cotnet", "logger=none", "data.root=x", "data.image_size=64"]
    given += ["train.batch_size=8", "train.precision=bf16", "train.compile=false", "data.num_classes=10"]
    config = compose("train", [*given, "train.clip_norm=1"]) | {"output_dir": str(tmp_path)}
    ranks = Ranks(rank=0, world_size=1, device=torch.device("cuda", 0))
    bench = LoopBench(config, ranks, 1)
    transform = parts.train_transform(config, parts.settings_of(config), bench.context.precision)
    context = replace(bench.context, data=replace(bench.context.data, transform=transform))
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, device=ranks.device)
    targets, indices = torch.randint(10, (8,), device=ranks.device), torch.arange(8)
    bench.state.model.train()
    for step in range(13):
        if step == 3:  # kernels are built and memory is taken
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(context, bench.state, images, targets, indices)
        except RuntimeError:
            torch.cuda.set_sync_debug_mode("default")
            raise
    torch.cuda.set_sync_debug_mode("default")
