"""Exported files as modules: images in, logits or probabilities out, whatever runs them."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cotnet.errors import InputError
from cotnet.export.formats import ABOUT, ABOUT_FILE, INPUT, require

SUFFIXES: Final = (".onnx", ".pt2")


class ExportedModel(nn.Module):
    """An exported classifier: (B, 3, H, W) on any device -> (B, num_classes) on the same device.

    `about`: what the file says of itself: model, preprocessing, classes, checksum of the weights. The graph runs on
    the CPU, in evaluation mode, whatever mode the module is in.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], about: dict[str, Any]) -> None:
        super().__init__()
        self._call, self.about = call, about

    def forward(self, images: Tensor) -> Tensor:
        # contiguous: AOTInductor's library takes the strides of its example for granted
        return self._call(images.detach().cpu().contiguous()).to(images.device)


def load_exported(path: str | Path) -> ExportedModel:
    """Reads a file that `python -m cotnet.export` wrote, of format onnx, pt2 or aoti.

    A file of format pt2 or aoti can hold code that runs: load only your own.

    Raises:
        InputError: the file is missing, damaged or not of this application.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no exported model at {path}; give the path of an existing file")
    reader = _read_onnx if path.suffix == ".onnx" else _read_aoti if _is_aoti(path) else _read_pt2
    try:
        call, about = reader(path)
        return ExportedModel(call, json.loads(about))
    except InputError:
        raise
    except (KeyError, OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path} is no whole exported model of this application ({reason}); export it again") from None


Read = tuple[Callable[[Tensor], Tensor], str]


def _read_onnx(path: Path) -> Read:
    require("onnxruntime")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes share no base but Exception
        raise ValueError(str(error)) from None

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return call, session.get_modelmeta().custom_metadata_map[ABOUT]


def _read_pt2(path: Path) -> Read:
    about = {ABOUT_FILE: ""}
    module = torch.export.load(path, extra_files=about).module()

    def call(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return call, about[ABOUT_FILE]


def _read_aoti(path: Path) -> Read:
    from torch._inductor import aoti_load_package

    with zipfile.ZipFile(path) as archive:
        about = next(archive.read(name) for name in archive.namelist() if name.endswith(ABOUT_FILE)).decode()
    module = aoti_load_package(str(path))

    def call(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return call, about


def _is_aoti(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith((".so", ".wrapper.cpp")) for name in archive.namelist())


@dataclass(frozen=True, kw_only=True)
class ExportDifference:
    """How far an exported file's results are from PyTorch's."""

    largest: float  # absolute; of values above 1, relative to the largest one
    images: int
    bound: float

    @property
    def small(self) -> bool:
        return self.largest <= self.bound


@torch.no_grad()
def compared(model: nn.Module, exported: nn.Module, batches: list[Tensor], *, bound: float) -> ExportDifference:
    """Compares an exported file with the PyTorch model on batches of images (B, 3, H, W) of any sizes."""
    largest = 0.0
    for batch in batches:
        ours, theirs = model(batch), exported(batch)
        difference = (ours - theirs).abs().max() / ours.abs().max().clamp(min=1)
        largest = max(largest, float(difference.nan_to_num(nan=float("inf"))))
    return ExportDifference(largest=largest, images=sum(map(len, batches)), bound=bound)
