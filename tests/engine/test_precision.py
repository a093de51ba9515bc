"""Freed memory of the CPU stays with the process: training faults its pages in once."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from cotnet.engine.precision import keep_freed_memory
from cotnet.models import resnet_small
if sys.argv[1] == "kept":
    keep_freed_memory(torch.device("cpu"))
torch.set_num_threads(1)
model, images = resnet_small(num_classes=10), torch.randn(64, 3, 64, 64)
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(images).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    """Page faults of the eighth step."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of the GNU C library")
def test_pages_are_faulted_in_once():
    assert faults("as it is") > 10_000  # else there would be nothing to keep
    assert faults("kept") < 1_000
