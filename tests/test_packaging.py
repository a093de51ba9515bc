"""The wheel is the model library: installed with its declared requirements alone, outside the checkout."""

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cotnet import __version__, models

ROOT = Path(__file__).resolve().parent.parent
# A user's folder called data must stay importable beside ours.
USE = """
import json, sys
import cotnet, data
from cotnet import export, models, ops
from cotnet.models.weights import load_weights
import torch
heavy = sorted({"torchvision", "hydra", "wandb", "matplotlib", "scipy"} & sys.modules.keys())
model = models.cotnet_small(width=8, num_classes=5).eval()
load_weights(model, "weights.safetensors")
logits = model(torch.ones(1, 3, 32, 32)).tolist()
print(json.dumps([cotnet.__version__, cotnet.__file__, data.OWNER, heavy, logits]))
"""


def requirements(name: str, found: dict[str, metadata.Distribution]) -> None:
    """Adds an installed distribution and all it requires, without extras."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        found[key] = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # of another platform
        return
    for line in found[key].requires or []:
        if "extra ==" not in line:
            requirements(re.match(r"[\w.-]+", line)[0], found)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory, wheel):
    """The Python of an environment that holds the wheel and what it requires, linked from this one."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    found: dict[str, metadata.Distribution] = {}
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"cotnet-{__version__}.dist-info/METADATA").decode().splitlines()
        archive.extractall(site)
    for line in lines:
        if line.startswith("Requires-Dist:") and "extra ==" not in line:
            requirements(re.match(r"Requires-Dist: ([\w.-]+)", line)[1], found)
    for name, distribution in found.items():
        if name != "cotnet":
            for top in {
                file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")
            }:
                link = site / top
                if not link.exists():
                    link.symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


def in_clean(clean, folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([clean, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_model_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"cotnet", f"cotnet-{__version__}.dist-info"}
    assert "cotnet/py.typed" in names
    inside = {name.split("/")[1].removesuffix(".py") for name in names if name.startswith("cotnet/")}
    assert inside == {"__init__", "errors", "export", "files", "integrity", "models", "ops", "py.typed", "settings"}


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(clean, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("OWNER = 'user'\n")
    model = models.cotnet_small(width=8, num_classes=5).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "use.py").write_text(USE)
    code, out, err = in_clean(clean, tmp_path, "use.py")
    assert code == 0, err
    version, file, owner, heavy, logits = json.loads(out)
    assert (version, owner, heavy) == (__version__, "user", [])
    assert clean.parent.parent in Path(file).parents
    with torch.no_grad():
        assert torch.allclose(torch.tensor(logits), model(torch.ones(1, 3, 32, 32)), atol=1e-6)
    check = [sys.executable, "-m", "pip", "--python", str(clean), "check"]
    assert (
        subprocess.run(check, capture_output=True, text=True, check=False).stdout.strip()
        == "No broken requirements found."
    )


PROGRAMS = ["train.py", "evaluate.py", "-m data.prepare", "-m data.check", "-m cotnet.gpu_check"]
PROGRAMS += ["-m cotnet.benchmarks.loop", "-m cotnet.benchmarks.nets"]
PROGRAMS += [f"-m cotnet.{path.stem}" for path in ROOT.glob("cotnet/*.py") if "__main__" in path.read_text()]


@pytest.mark.slow
def test_a_program_without_its_packages_is_one_line(clean):
    """Of a checkout whose environment has the library's requirements alone."""
    line = "error: not installed: hydra, matplotlib, omegaconf, rich, scipy, wandb; run make setup\n"
    for program in PROGRAMS:
        assert (program, *in_clean(clean, ROOT, *program.split(), "--help")) == (program, 2, "", line)


@pytest.mark.slow
def test_the_programs_run_from_any_folder(tmp_path):
    command = [sys.executable, ROOT / "train.py", "--cfg", "job", "experiment=digits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cotnet_small" in done.stdout
    assert subprocess.run([sys.executable, "-m", "data.prepare", "--help"], cwd=tmp_path, check=False).returncode == 0
