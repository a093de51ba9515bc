"""What an export writes, and the lines it prints: the difference from PyTorch, int8's accuracy, latency."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cotnet import image_parts, parts
from cotnet.commands.eval_model import data_settings
from cotnet.commands.eval_sets import read_sets
from cotnet.commands.export_images import CPU, normalised, prepared, whole
from cotnet.config.compose import Config
from cotnet.engine.checkpoints import Checkpoint
from cotnet.errors import RunError
from cotnet.evaluation.suites import sample
from cotnet.export import formats
from cotnet.export.graph import Preprocessing, WithPreprocessing
from cotnet.export.hub import CONFIG, WEIGHTS, from_pretrained, save_pretrained, upload
from cotnet.export.latency import table
from cotnet.export.runtime import ExportDifference, compared, load_exported
from cotnet.models.weights import load_weights
from cotnet.reporting.environment import device_name
from cotnet.reporting.terminal import say
from data.sets.image_set import ImageSet

NAMES: Final = {"onnx": "model.onnx", "pt2": "model.pt2", "aoti": "model_aoti.pt2", "timm": "model.pth"}
BOUNDS: Final = {"onnx": 1e-4, "pt2": 1e-6, "aoti": 1e-6}  # of the difference from PyTorch, float32
OTHER_SIZE: Final = 32  # pixels: the file is also checked on images that are so much larger


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is written: a model in evaluation mode, how its images are prepared, and what is said of it."""

    model: nn.Module
    preprocessing: Preprocessing
    about: dict[str, Any]
    card: str | None


def write_graph(made: Exported, config: Config, completed: Config, *, images: ImageSet, folder: Path) -> None:
    """Writes and checks a file of format onnx, pt2 or aoti, and what was asked for beside it."""
    kind, size, inside = config["format"], made.preprocessing.eval_size, config["preprocessing"]
    module = WithPreprocessing(made.model, made.preprocessing).eval() if inside else made.model
    pixels = prepared(completed, images, more_sizes=() if inside else (size + OTHER_SIZE,))
    batches = whole(images) if inside else [normalised(completed, part) for sizes in pixels for part in sizes]
    batches = batches if inside else [*batches, batches[0][:1]]  # also one image alone
    shape = (2, 3, size + 37, size + 21) if inside else (2, 3, size, size)
    program = formats.trace(module, torch.zeros(shape, dtype=torch.uint8 if inside else torch.float32))
    path = folder / NAMES[kind]
    unchecked = path.with_stem(f"{path.stem}_unchecked")
    about = {**made.about, "inside": inside}
    if kind == "onnx":
        formats.to_onnx(program, unchecked, about, output="probabilities" if inside else "logits")
    else:
        {"pt2": formats.to_pt2, "aoti": formats.to_aoti}[kind](program, unchecked, about)
    difference = compared(module, load_exported(unchecked), batches, bound=BOUNDS[kind])
    require_small(difference, unchecked)
    unchecked.replace(path)
    say(f"{path}: at most {difference.largest:.1e} from PyTorch on {difference.images} images ({_allowed(difference)})")
    if isinstance(module, WithPreprocessing):
        say(_preprocessing_line(module, batches, [sizes[0] for sizes in pixels], completed))
    files = {path.name: path}
    if config["quantize"]:
        quantized = path.with_stem(f"{path.stem}_int8")
        files[quantized.name] = quantized
        _write_int8(path, quantized, config, completed)
    if config["latency"]:
        for line in _latency(module, files, batches[-1][:1]):
            say(line)


def _allowed(difference: ExportDifference) -> str:
    return f"allowed: {difference.bound:g}"


def require_small(difference: ExportDifference, path: Path) -> None:
    """Raises RunError if an exported file differs from PyTorch by more than its bound."""
    if not difference.small:
        raise RunError(
            f"{path} differs from PyTorch by {difference.largest:.1e}, allowed is {difference.bound:g}; "
            "do not trust this file"
        )


@torch.no_grad()
def _preprocessing_line(
    module: WithPreprocessing, images: list[Tensor], pixels: list[Tensor], completed: Config
) -> str:
    """How far the graph's pixels and probabilities are from those of the evaluation's loader."""
    theirs = torch.cat(pixels)
    ours = torch.cat([module.pixels(image) for image in images])
    levels = (ours - theirs.float()).abs()
    given = module.model(normalised(completed, theirs)).softmax(1)
    apart = (torch.cat([module(image) for image in images]) - given).abs().max()
    return (
        f"preprocessing in the graph: pixels at most {levels.max():.0f} of 255 levels from the evaluation's loader, "
        f"{100 * (levels > 0).float().mean():.2f} % of them differ; probabilities at most {apart:.1e}"
    )


def _write_int8(path: Path, quantized: Path, config: Config, completed: Config) -> None:
    """Writes the int8 file and prints its top-1 beside that of `path`."""
    data = data_settings(completed)
    training = sample(image_parts.read_data(data)[0], config["calibration_images"])
    batches = [normalised(completed, sizes[0]) for sizes in prepared(completed, training)]
    about = {**load_exported(path).about, "quantized": "int8"}
    formats.quantize_int8(path, quantized, batches, about)
    chosen = read_sets({**completed, "images": None}, None)[0]
    val = sample(chosen.images, config["accuracy_images"])
    right: dict[str, int] = {}
    models = {one.name: load_exported(one) for one in (path, quantized)}
    labels = torch.from_numpy(val.labels.copy())
    for name, model in models.items():
        best = torch.cat([model(normalised(completed, sizes[0])).argmax(1) for sizes in prepared(completed, val)])
        right[name] = int((best == labels).sum())
    figures = ", ".join(f"{name} {100 * count / len(labels):.2f} %" for name, count in right.items())
    sizes = f"{quantized.stat().st_size / 2**20:.1f} MiB instead of {path.stat().st_size / 2**20:.1f} MiB"
    say(f"{quantized}: {sizes}; top-1 on {len(labels)} val images: {figures}")


def _latency(module: nn.Module, files: dict[str, Path], images: Tensor) -> list[str]:
    """The table of milliseconds for one image."""
    compiled: Any = torch.compile(module)
    models: dict[str, nn.Module] = {"PyTorch, eager": module, "PyTorch, compiled": compiled}
    rows = table({**models, **{name: load_exported(path) for name, path in files.items()}}, images)
    shape = " x ".join(map(str, images.shape))
    return [f"{device_name(CPU)}, {torch.get_num_threads()} threads, images of {shape}", *rows]


def write_folder(made: Exported, config: Config, completed: Config, *, images: ImageSet, folder: Path) -> None:
    """Writes and checks the folder that `from_pretrained` reads."""
    classes = made.about["classes"]
    save_pretrained(made.model, folder, preprocessing=made.preprocessing, classes=classes, card=made.card)
    batches = [normalised(completed, sizes[0]) for sizes in prepared(completed, images)]
    difference = compared(made.model, from_pretrained(folder), batches, bound=0)
    require_small(difference, folder / WEIGHTS)
    card = "README.md, " if made.card else ""
    say(f"{folder}: {card}{CONFIG} and {WEIGHTS}; the same results as the checkpoint on {difference.images} images")
    if config["push"]:
        upload(folder, config["push"])
        say(f"uploaded to {config['push']}")


def write_timm(made: Exported, checkpoint: Checkpoint, completed: Config, images: ImageSet, *, folder: Path) -> None:
    """Writes and checks a file that timm's load_checkpoint reads."""
    path = folder / NAMES["timm"]
    averaged = checkpoint.get("ema") or None
    formats.to_timm(checkpoint.get("model") or made.model.state_dict(), averaged, path)
    backbone = {key: value for key, value in completed["backbone"].items() if key != "weights"}
    other = parts.build_backbone(backbone).eval()
    load_weights(other, path, ema=completed["weights"] == "ema")
    batches = [normalised(completed, sizes[0]) for sizes in prepared(completed, images)]
    difference = compared(made.model, other, batches, bound=0)
    require_small(difference, path)
    which = "state_dict and state_dict_ema" if averaged else "state_dict"
    say(f"{path}: {which}; the same results as the checkpoint on {difference.images} images")
