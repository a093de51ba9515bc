"""The host never waits for the GPU within a step: every call that would is listed here with its reason."""

import ast
from pathlib import Path

import pytest
import torch

from cotnet.gpu_check.exactness import watched_steps
from cotnet.gpu_check.stage import Bench

ROOT = Path(__file__).resolve().parent.parent.parent
STEP = (
    *(f"cotnet/engine/{name}.py" for name in ("step", "training", "losses", "optimizer", "state", "nonfinite")),
    *("cotnet/engine/side_stream.py", "cotnet/models/*.py", "cotnet/ops/*.py", "cotnet/reporting/*.py"),
    *("data/augmentation/*.py", "data/loading/dali.py", "data/loading/plan.py"),
)
# Methods and functions of tensors that copy to the host, or need a size that only the device knows.
WAITING = {
    *("item", "cpu", "tolist", "numpy", "nonzero", "argwhere", "synchronize", "unique", "masked_select", "bincount"),
    *("is_nonzero", "equal", "allclose", "repeat_interleave", "tensor_split", "multinomial", "isin"),
}
# (file, function, call) -> why it does not wait within a step.
ALLOWED = {
    ("cotnet/engine/training.py", "log", "tolist"): "a log line: the figures of many steps in one copy",
    (
        "cotnet/engine/nonfinite.py",
        "check",
        "cpu",
    ): "before a log line or a save: the figures of many steps in one copy",
    ("cotnet/engine/nonfinite.py", "check", "tolist"): "the same figures, on the CPU",
    ("cotnet/engine/state.py", "_buffers", "cpu"): "a checkpoint",
    ("cotnet/engine/state.py", "pack", "cpu"): "a checkpoint",
    ("cotnet/models/local_attention.py", "local_attention", "repeat_interleave"): "by a number that the host knows",
    ("cotnet/models/weights.py", "to_bytes", "cpu"): "not in training",
    ("cotnet/reporting/wandb_watch.py", "copied", "cpu"): "histograms, every logger.watch steps, if it is set",
    ("cotnet/reporting/wandb_watch.py", "copied", "numpy"): "the same, on the CPU",
    ("data/loading/dali.py", "_prepare", "tolist"): "NumPy's",
    ("data/loading/dali.py", "_resize", "numpy"): "images that are resized on the CPU",
    ("data/loading/dali.py", "finish", "numpy"): "images that are resized on the CPU",
    ("data/loading/dali.py", "finish", "tolist"): "NumPy's",
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
@pytest.mark.parametrize("backbone", ["cotnet50", "resnet50", "pvt_tiny"])
def test_ten_steps_do_not_wait(backbone, tmp_path):
    """Augmentation, step, averaged weights: torch raises an error where the host would wait."""
    given = [f"backbone={backbone}", "data.image_size=64", "train.batch_size=8", "train.precision=bf16"]
    bench = Bench(device=torch.device("cuda", 0), folder=tmp_path)
    watched_steps([*given, "train.compile=false", "data.num_classes=10"], bench, 10)
