"""Folders that hold a model: config.json, model.safetensors and, by choice, README.md. Nothing needs a network unless
`push` is given."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from torch import nn

from cotnet import models
from cotnet.errors import InputError
from cotnet.export.formats import require
from cotnet.export.graph import Preprocessing
from cotnet.files import write_text
from cotnet.models.weights import load_weights, save_weights, trusted_backbone

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
CARD: Final = "README.md"


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    card: str | None = None,
    push: str | None = None,
) -> None:
    """Writes a model of `cotnet.models` into a folder that `from_pretrained` reads.

    preprocessing, classes: how its images are prepared, and the names of its classes, for config.json. card: the text
    of README.md. push: the name OWNER/NAME of a repository on the hub that gets the folder's three files; it is made,
    private, if it does not exist.

    Raises:
        InputError: the model or its operator is not of `cotnet.models`, huggingface_hub is missing, or the hub does not
            take the files.
    """
    spec = getattr(model, "spec", None)
    if spec is None:
        raise InputError("the model has no spec; build it with a constructor of cotnet.models")
    if any(isinstance(value, dict) and "_target_" in value for value in spec.settings.values()):
        raise InputError(
            "the model's operator is of a plug-in, which from_pretrained never imports; export to onnx or pt2"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "library_name": "cotnet",
        "architecture": spec.name,
        "settings": spec.settings,
        "preprocessing": None if preprocessing is None else preprocessing.as_dict(),
        "classes": None if classes is None else list(classes),
    }
    save_weights(model, folder / WEIGHTS)
    write_text(folder / CONFIG, json.dumps(content, indent=2) + "\n")
    if card is not None:
        write_text(folder / CARD, card)
    if push is not None:
        upload(folder, push)


def upload(folder: Path, repository: str) -> None:
    """Uploads what save_pretrained wrote to OWNER/NAME of the hub. Raises InputError if the hub does not take it."""
    require("huggingface_hub")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().create_repo(repository, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS, CARD])
    except (*HfHubHTTPError.__bases__, HFValidationError) as error:  # OSError, and its HTTP library's own class
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
        raise InputError(
            f"push={repository}: the hub did not take {folder}, which is complete here ({reason}); log in with "
            f"`hf auth login`, then `hf upload {repository} {folder}`"
        ) from None


def from_pretrained(folder: str | Path) -> nn.Module:
    """The model of a folder that `save_pretrained` wrote, in evaluation mode, with the same bits.

    `model.pretrained`: the content of config.json: preprocessing and classes. Reads this folder alone.

    Raises:
        InputError: a file is missing or damaged, or names no model of `cotnet.models`.
    """
    path = Path(folder) / CONFIG
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        name, settings = str(content["architecture"]), dict(content["settings"])
    except OSError:
        raise InputError(f"no {CONFIG} in {folder}; give a folder that save_pretrained wrote") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged, or of another library; write the folder again") from None
    node = trusted_backbone({"_target_": f"cotnet.models.{name}", **settings})
    model: nn.Module = getattr(models, name)(**{key: value for key, value in node.items() if key != "_target_"})
    load_weights(model, Path(folder) / WEIGHTS)
    model.pretrained = content  # type: ignore[assignment]
    return model.eval()
