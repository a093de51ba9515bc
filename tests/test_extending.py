"""The examples of docs/extending.md, applied to a copy of the project and trained with."""

import re
import shutil
import subprocess
import sys

import pytest
from programs import ROOT, SMALL, environment

pytestmark = pytest.mark.slow

TRAINED = {  # what to train with, and what then holds
    "every part at once": (
        *("data=ten_digits", "backbone=cotnet38", "augmentation=light", "optimizer=nadam", "schedule=inverse_root"),
        *("train.loss=mse", "logger=csv", "augmentation.policy=rand-cot-m15-n2", "train.max_steps=2"),
    ),
    "the operator": ("backbone=resnet_depthwise", "train.max_steps=2"),
}


def extended(folder):
    """A copy of the project with every example of the page in it."""
    for name in ("train.py", "evaluate.py", "conf", "cotnet", "data"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    page = (ROOT / "docs" / "extending.md").read_text()
    added = re.findall(r"Add to\s+`([^`]+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
    changed = re.findall(r"In `([^`]+)`:\n\n```diff\n-(.*?)\n\+(.*?)\n```", page, re.DOTALL)
    assert (len(added), len(changed)) == (page.count("```python") + page.count("```yaml"), page.count("```diff"))
    for name, text in added:
        with (folder / name).open("a") as file:
            file.write(f"\n\n{text}" if name.endswith(".py") and (folder / name).stat().st_size else text)
    for name, old, new in changed:
        text = (folder / name).read_text()
        assert text.count(old) == 1, (name, old)
        (folder / name).write_text(text.replace(old, new))
    return folder


def test_every_example_trains(digits, tmp_path):
    project = extended(tmp_path)
    variables = environment() | {"PYTHONPATH": str(project)}
    for name, overrides in TRAINED.items():
        command = [sys.executable, "train.py", *SMALL, f"data.root={digits}", *overrides, f"output_dir={name}"]
        done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    lines = (project / "every part at once" / "accuracy.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["2"]
