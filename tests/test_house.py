"""The rules of docs/architecture.md that a tool can check: imports point down, no circle, short files and functions."""

import ast
import graphlib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up. A module may import its own package and every layer below its own; packages of one layer do not
# know each other. The longest prefix counts.
LAYERS = (
    ("cotnet.errors", "cotnet.files", "cotnet.integrity", "cotnet.headline"),
    ("cotnet.records", "cotnet.requirements", "cotnet.settings", "cotnet.figures"),
    ("cotnet.ops", "cotnet.evaluate_settings"),
    ("cotnet.models", "cotnet.engine", "data"),
    ("cotnet.dense", "cotnet.export"),
    ("cotnet.reporting", "cotnet.evaluation"),
    ("cotnet.config",),
    ("cotnet.sweeps",),
    ("cotnet.image_parts", "cotnet.pages"),
    ("cotnet.parts",),
    ("cotnet.dense_parts",),
    ("cotnet.commands",),
    (
        "train",
        "evaluate",
        "cotnet",
        "cotnet.benchmarks",
        "cotnet.export.__main__",
    ),  # programs: cotnet/doctor.py and others
    ("cotnet.gpu_check",),  # runs the programs and benchmarks
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [ROOT / "train.py", ROOT / "evaluate.py", *ROOT.glob("cotnet/**/*.py"), *ROOT.glob("data/**/*.py")]
}
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}


def room(module: str) -> str:
    """The package or module of LAYERS that a module belongs to."""
    return next(name for name in sorted(LEVEL, key=len, reverse=True) if f"{module}.".startswith(f"{name}."))


def imported(module: str) -> set[str]:
    """The modules of this project that a module imports, anywhere in its file."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return {name for name in found if name in FILES} - {module}


def test_imports_point_down():
    wrong = []
    for module in FILES:
        for other in imported(module):
            here, there = room(module), room(other)
            same = here == there and here != "cotnet"
            if not same and LEVEL[there] >= LEVEL[here]:
                wrong.append(f"{module} imports {other}")
    assert sorted(wrong) == []


def test_no_import_circle():
    graph = {module: imported(module) for module in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_files_and_functions_are_short():
    long = []
    for module, tree in TREES.items():
        if (lines := len(FILES[module].read_text().splitlines())) > 300:
            long.append(f"{module}: {lines} lines")
        for node in ast.walk(tree):
            if module == "cotnet.ops.local_aggregation_kernels":  # a Triton kernel is one function
                continue
            if isinstance(node, ast.FunctionDef) and (size := node.end_lineno - node.lineno + 1) > 50:
                long.append(f"{module}.{node.name}: {size} lines")
    assert sorted(long) == []


def test_class_names_are_unique():
    names = Counter(node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert sorted(name for name, count in names.items() if count > 1) == []


@pytest.mark.parametrize("module", sorted(FILES))
def test_every_module_says_what_it_is(module):
    assert not FILES[module].read_text() or ast.get_docstring(TREES[module])
