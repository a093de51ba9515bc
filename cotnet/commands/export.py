"""What `python -m cotnet.export` runs: a checkpoint becomes a file of another format, checked on real images."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cotnet.commands import eval_model, export_files, export_images
from cotnet.commands.tool_keys import FIXED, check_tool_keys, single_checkpoint
from cotnet.config.build import shown
from cotnet.config.claims import claimed
from cotnet.config.compose import Config, flatten
from cotnet.config.moves import stored_config
from cotnet.errors import InputError
from cotnet.evaluation.speed import cost
from cotnet.export.card import model_card
from cotnet.export.formats import require
from cotnet.export.graph import Preprocessing
from cotnet.settings import DataSettings, Section, setting

PACKAGES: Final = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
RECIPE: Final = ("train", "optimizer", "schedule", "augmentation")


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Section):
    """The keys of `python -m cotnet.export` beside the groups `backbone`, `data` and `loader`."""

    checkpoint: Path = setting("a checkpoint, a file of published weights, or a run's folder for its `best.pt`")
    format: Literal["onnx", "pt2", "aoti", "safetensors", "timm"] = setting(
        "`onnx`: ONNX of opset 20; `pt2`: torch.export's file; `aoti`: a library by AOTInductor, for this kind of "
        "machine; `safetensors`: a folder that `from_pretrained` reads; `timm`: weights that timm's programs read"
    )
    weights: Literal["ema", "raw"] = setting("the averaged weights, or those of the last step")
    output_dir: str = setting("folder of the files; null: `outputs/export/` and a name made of the overrides")
    preprocessing: bool = setting(
        "of onnx, pt2, aoti: put the evaluation's preprocessing into the graph: uint8 images of any size in, class "
        "probabilities out; false: normalised images in, logits out"
    )
    images: Path | None = setting("a folder of images to check the file on; null: the val split of `data.root`")
    check_images: int = setting("so many images are compared with PyTorch", least=2, most=1000)
    quantize: Literal["int8"] | None = setting("of onnx: also write a file that computes in int8")
    calibration_images: int = setting("training images that the ranges of int8 are measured on", least=1)
    accuracy_images: int = setting("val images that the top-1 of the int8 file is counted on", least=1)
    latency: bool = setting(
        "of onnx, pt2, aoti: also measure one image in PyTorch, eager and compiled, and in the file"
    )
    evaluation: Path | None = setting(
        "of safetensors: a folder that evaluate.py wrote for these weights; its figures go into the model card, "
        "README.md; null: no card"
    )
    license: str = setting("of the model card: an identifier that hubs know")
    push: str | None = setting("of safetensors: upload the folder to this repository, OWNER/NAME, of the hub")


GRAPHS: Final = ("onnx", "pt2", "aoti")


def run(config: Config) -> int:
    """Writes the model into `output_dir` and prints how far its results are from PyTorch's; 0.

    Raises:
        InputError: the checkpoint, the images or a setting is wrong, or the model cannot be exported.
        RunError: the results differ by more than the format's bound.
    """
    file = checked(config)
    kind, folder = config["format"], Path(config["output_dir"])
    read = eval_model.read({**config, **FIXED}, [file])
    if not hasattr(read.model, "spec"):
        raise InputError(
            "backbone: a plug-in's model does not know its name; decorate it with cotnet.models.spec.constructor"
        )
    data = eval_model.data_settings(read.config)
    card = _card(config, read, data, file) if config["evaluation"] else None
    found = export_images.check_images(read, config["images"], count=config["check_images"])
    model = read.model.eval()
    made = export_files.Exported(model=model, preprocessing=_preprocessing(data), about=_about(read, data), card=card)
    with claimed(folder):
        if kind in GRAPHS:
            export_files.write_graph(made, config, read.config, images=found, folder=folder)
        elif kind == "safetensors":
            export_files.write_folder(made, config, read.config, images=found, folder=folder)
        else:
            export_files.write_timm(made, eval_model.own_checkpoint(read.config), read.config, found, folder=folder)
    return 0


def checked(config: Config) -> Path:
    """The checkpoint's file, after every check that needs no checkpoint.

    Raises:
        InputError: a setting is wrong, or settings do not go together.
    """
    check_tool_keys(config, ExportSettings)
    kind = config["format"]
    for key, given, kinds in (
        ("preprocessing", config["preprocessing"], GRAPHS),
        ("latency", config["latency"], GRAPHS),
        ("quantize", config["quantize"], ("onnx",)),
        ("evaluation", config["evaluation"], ("safetensors",)),
        ("push", config["push"], ("safetensors",)),
    ):
        if given and kind not in kinds:
            raise InputError(f"{key}={str(given).lower()} is for format={', '.join(kinds)}; leave it out for {kind}")
    if config["push"] and not config["evaluation"]:
        raise InputError("push: a model card needs figures; run evaluate.py and give its folder, evaluation=FOLDER")
    if config["quantize"] and config["preprocessing"]:
        raise InputError("quantize=int8 is for graphs without preprocessing; set preprocessing=false")
    require(*PACKAGES.get(kind, ()))
    return single_checkpoint(config)


def _preprocessing(data: DataSettings) -> Preprocessing:
    names = [field.name for field in dataclasses.fields(Preprocessing)]
    return Preprocessing(**{name: getattr(data, name) for name in names})


def _about(read: eval_model.EvaluatedModel, data: DataSettings) -> dict[str, Any]:
    """What evaluate.py needs to know of an exported file."""
    spec: Any = read.model.spec
    return {
        "format": 1,
        "architecture": spec.name,
        "settings": spec.settings,
        "num_classes": read.config["backbone"]["num_classes"],
        "preprocessing": _preprocessing(data).as_dict(),
        "eval_flip": data.eval_flip,
        "classes": None if read.classes is None else list(read.classes),
        "weights": read.config["weights"],
        "weights_checksum": read.checksum,
        **cost(read.model, data.eval_size),
    }


def _card(config: Config, read: eval_model.EvaluatedModel, data: DataSettings, path: Path) -> str:
    """The model card, from an evaluation of the same weights.

    Raises:
        InputError: the folder holds no evaluation, or one of other weights or without labels.
    """
    folder = Path(config["evaluation"])
    try:
        figures = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        raise InputError(
            f"evaluation={folder} holds no metrics.json; run evaluate.py with output_dir={folder} first"
        ) from None
    if "evaluations" in figures:
        raise InputError(f"evaluation={folder} holds several evaluations; give the folder of one of them")
    if "top1" not in figures:
        raise InputError(f"evaluation={folder} is of images without labels; evaluate a val split")
    if figures["weights_checksum"] != read.checksum:
        raise InputError(
            f"evaluation={folder} is of other weights than {path}; evaluate these, weights={config['weights']}"
        )
    checkpoint = eval_model.own_checkpoint(read.config)
    trained = stored_config(checkpoint) if checkpoint else {}
    recipe = {
        key: shown(value)
        for group in RECIPE
        if group in trained
        for key, value in flatten({group: trained[group]}).items()
        if value is not None
    }
    name = Path(figures["image_folder"])
    dataset = name.parent.name if name.name == "val" else name.name
    spec: Any = read.model.spec
    given: dict[str, Any] = {"preprocessing": _preprocessing(data), "dataset": dataset, "recipe": recipe}
    return model_card(spec, figures, **given, license=config["license"])
