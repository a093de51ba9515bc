"""python -m cotnet.benchmarks.local_aggregation --compile-for: what the compiler makes of the Triton kernels.

In a process of its own, since the tests' kernels run in Triton's interpreter.
"""

import json
import os
import subprocess
import sys

import pytest

from cotnet.benchmarks.local_aggregation import main


def compiled(folder, *arguments):
    """The records, by layout, kernel and K; compiled anew, not taken from Triton's cache."""
    command = [sys.executable, "-m", "cotnet.benchmarks.local_aggregation", "--json", str(folder / "counts.json")]
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run([*command, *arguments], env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "spilled bytes" in done.stdout
    records = json.loads((folder / "counts.json").read_text())["records"]
    return {(row["layout"], row["kernel"], row["K"]): row for row in records}


def widths(row):
    return [int(part.split(" x ")[1].removesuffix(" B")) for part in row["loads"].split(", ")]


BFLOAT16 = ("--compile-for", "sm_90", "--dtype", "bfloat16")


@pytest.mark.long
@pytest.mark.slow
def test_instructions_of_contiguous_kernels(tmp_path):
    found = compiled(tmp_path, *BFLOAT16, "--formats", "contiguous", "--kernel-sizes", "3")
    forward, backward = (found["contiguous", part, 3] for part in ("forward", "backward"))
    assert 216 < forward["instructions"] <= 400  # 72 times load, convert, multiply and add
    assert 432 < backward["instructions"] <= 700
    assert forward["loads"] == "81 x 2 B"  # 72 values, 9 weights
    assert backward["loads"] == "161 x 2 B"  # 72 values, 80 upstream gradients, 9 weights
    assert all(row["spilled_bytes"] == 0 and 16 <= row["registers"] <= 64 for row in found.values())


@pytest.mark.long
@pytest.mark.parametrize("size", [3, 5, 7])
def test_spills_and_loads(tmp_path, size):
    found = compiled(tmp_path, *BFLOAT16, "--kernel-sizes", str(size))
    assert len(found) == 6
    assert all(row["spilled_bytes"] == 0 for row in found.values())
    assert min(widths(found["channels_last", "forward", size])) == 16
    assert min(widths(found["channels_last", "backward", size])) == 8


@pytest.mark.long
@pytest.mark.parametrize("target", ["sm_80", "sm_100"])
def test_other_targets(tmp_path, target):
    found = compiled(tmp_path, "--compile-for", target, "--dtype", "float32", "--kernel-sizes", "3")
    assert {row["target"] for row in found.values()} == {target}
    assert all(row["spilled_bytes"] == 0 for row in found.values())


SIZES = """
import hashlib, torch
from cotnet.benchmarks.compiled_kernels import compiled_code
from cotnet.ops.local_aggregation_triton import backward_launches, forward_launches
for layout in (torch.channels_last, torch.contiguous_format):  # of the weights
    codes = {"forward": set(), "backward": set()}
    for height, width in ((200, 304), (176, 304), (168, 256), (40, 64)):
        value = torch.empty(2, 64, height, width, device="meta").contiguous(memory_format=torch.channels_last)
        weight = torch.empty(2, 72, height, width, device="meta").contiguous(memory_format=layout).unflatten(1, (8, 9))
        gradients = torch.empty_like(value), torch.empty_like(weight)
        (forward,) = forward_launches(value, weight, value, 1)
        (backward,) = backward_launches(value, value, weight, gradients, dilation=1)
        for name, launch in (("forward", forward), ("backward", backward)):
            codes[name].add(hashlib.sha256(compiled_code(launch, 90)).hexdigest())
    print(*map(len, codes.values()))
"""


@pytest.mark.slow
def test_a_kernel_serves_maps_of_every_size_in_channels_last(tmp_path):
    """Detectors see hundreds of sizes."""
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SIZES], env=env, check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["1"] * 4, done.stderr


def test_the_interpreter_is_no_compiler(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as end:
        main(["--compile-for", "sm_90"])
    assert end.value.code == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err
