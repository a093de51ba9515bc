"""A module to a file of each format. Every function writes the file `path` and returns nothing.

Batch and size of the images stay dynamic. Formats that need more than torch say so in one line.
"""

import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cotnet.errors import InputError

OPSET: Final = 20
ABOUT: Final = "cotnet"  # the entry of a file that says how to use it, as JSON
ABOUT_FILE: Final = f"{ABOUT}.json"
INPUT: Final = "images"
OPERATOR: Final = re.compile(r"\b(?:aten|prims|torchvision|torch\.ops|cotnet)(?:\.|::)[A-Za-z_]\w*(?:\.[a-z]\w*)?")


def trace(model: nn.Module, images: Tensor) -> ExportedProgram:
    """The graph of a model in evaluation mode, from example images (B, 3, H, W) with B of at least 2.

    Raises:
        InputError: the model cannot be exported; the line names the operator.
    """
    sizes = {0: Dim("batch", min=1), 2: Dim.AUTO, 3: Dim.AUTO}
    with _refusing("torch.export"), torch.no_grad():
        return torch.export.export(model.eval(), (images,), dynamic_shapes=(sizes,))


def to_onnx(program: ExportedProgram, path: Path, about: dict[str, Any], *, output: str) -> None:
    """Writes an ONNX file of opset 20 with one input `images` and one output. about: kept as its metadata.

    Raises:
        InputError: an operator has no translation, or a package is missing.
    """
    require("onnx", "onnxscript")
    import onnx

    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [output]}
    with _refusing("ONNX"):
        made = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, verbose=False, **names)
    assert made is not None
    proto = made.model_proto
    onnx.helper.set_model_props(proto, {ABOUT: json.dumps(about)})
    path.write_bytes(proto.SerializeToString())


def to_pt2(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    """Writes torch.export's own file; `torch.export.load(path).module()` runs it without this package."""
    torch.export.save(program, path, extra_files={ABOUT_FILE: json.dumps(about)})


def to_aoti(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    """Compiles the graph to a library for this kind of machine; `torch._inductor.aoti_load_package(path)` runs it.

    Raises:
        InputError: there is no C++ compiler, or the graph does not compile.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError):
        raise InputError("format=aoti needs a C++ compiler, such as g++; install one, or set format=pt2") from None
    with _refusing("AOTInductor"):
        aoti_compile_and_package(program, package_path=str(path))
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/extra/{ABOUT_FILE}", json.dumps(about))


def to_timm(raw: dict[str, Tensor], averaged: dict[str, Tensor] | None, path: Path) -> None:
    """Writes the weights under the keys that timm's `load_checkpoint` reads: state_dict, and state_dict_ema if there
    are averaged weights."""
    torch.save({"state_dict": raw, **({"state_dict_ema": averaged} if averaged else {})}, path)


def quantize_int8(source: Path, path: Path, batches: Sequence[Tensor], about: dict[str, Any]) -> None:
    """Writes an ONNX file whose convolutions and matrix products take int8 (QDQ; weights of 7 bits, per channel).

    batches: normalised images that the ranges of the activations are measured on. about: as for `to_onnx`.

    Raises:
        InputError: a package is missing.
    """
    require("onnx", "onnxruntime")
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = path.with_name(f".{path.name}.prepared")
    logging.getLogger().disabled = True  # it warns of what was just done
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,  # sums of 8-bit products can overflow 16 bits: 71.0 % instead of 81.3 % on digits
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
    finally:
        logging.getLogger().disabled = False
        prepared.unlink(missing_ok=True)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {ABOUT: json.dumps(about)})
    onnx.save(proto, path)


def require(*packages: str) -> None:
    """Raises InputError if a package of the extra `export` is missing."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f"not installed: {', '.join(missing)}; pip install 'cotnet[export]'")


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Makes an InputError that names the operator of whatever the exporter raises, without its progress lines."""
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (InputError, KeyboardInterrupt, MemoryError, OSError):
        raise
    except Exception as error:  # the exporters raise classes of many modules
        raise InputError(f"the model cannot be exported to {what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The operator that an exporter's error names, innermost first, else the error's first line."""
    if "data-dependent" in str(error):
        return (
            "aten._local_scalar_dense decides by a tensor's value (if, while, float(), item()); use torch.where there"
        )
    chain, link = [str(error)], error
    while (inner := link.__cause__ or link.__context__) is not None:
        chain.append(str(inner))
        link = inner
    for text in reversed(chain):
        if found := OPERATOR.search(text):
            return f"it has no form of the operator {found[0]}; replace that operator in the model"
    return next((line.strip() for line in chain[-1].splitlines() if line.strip()), type(error).__name__)
