"""Load weights of published files and our own, without running code from the file."""

import difflib
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import nn

from cotnet import models
from cotnet.errors import InputError
from cotnet.integrity import damage
from cotnet.models.external import is_timm_model, is_torchvision_model

AVERAGED, RAW = ("state_dict_ema", "model_ema", "ema"), ("state_dict", "model")
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # what DDP and torch.compile put into keys
TIMM = {"pretrained", "pretrained_backbone", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
FUNCTIONS = ("operator",)  # settings that may be a function of a plug-in, named by a `_target_`
WEIGHT_SETTINGS = {"weights", "ema", "head", "weights_backbone", "progress", *TIMM}  # ours, torchvision's, timm's
State = dict[str, torch.Tensor]


def load_weights(
    model: nn.Module, path: str | Path, *, ema: bool = True, head: Literal["keep", "reset"] = "keep"
) -> None:
    """Load .pth, .pth.tar, .pt, .safetensors, or the folder of an unzipped file, into the model.

    `ema` prefers the averaged weights where the file has both; False takes the raw ones. head="reset" loads everything
    but the classifier. The models resize position tables of another image size. Raises InputError if the file cannot
    be read or does not fit, or no classifier is found for "reset"; the model is then unchanged.
    """
    path = Path(path)
    state = select_state(read_file(path), path, ema=ema)
    own = model.state_dict()
    classifier = classifier_keys(model)
    if head == "reset":
        if not classifier:
            raise InputError("head=reset: this model has no classifier to leave out; set head=keep")
        state = {key: value for key, value in state.items() if key not in classifier}
        state |= {key: own[key] for key in classifier}
    # Files from before 2018 lack the batch counters.
    state = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | state
    for name, module in model.named_modules():
        if resize := getattr(module, "resize_tables", None):
            resize(state, f"{name}." if name else "")
    _check_fit(state, own, classifier, path)
    model.load_state_dict(state)


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state dict as .safetensors; load_weights reads back the same bits."""
    Path(path).write_bytes(to_bytes(model))


def to_bytes(model: nn.Module) -> bytes:
    """The state dict as the content of a .safetensors file."""
    return save({key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()})


def from_bytes(model: nn.Module, content: bytes) -> None:
    """Load what `to_bytes` made of a model of the same architecture."""
    model.load_state_dict(load(content))


def classifier_keys(model: nn.Module) -> list[str]:
    """State-dict keys of the classifier: what timm's configuration of the model names, else the last linear layer, else
    the last convolution (SqueezeNet's)."""
    known = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or []
    names = [known] if isinstance(known, str) else known
    for kind in (nn.Linear, nn.Conv2d):
        names = names or [name for name, module in model.named_modules() if isinstance(module, kind)][-1:]
    prefixes = tuple(f"{name}." for name in names)
    return [key for key in model.state_dict() if key.startswith(prefixes)]


def read_file(path: Path) -> Any:
    """The file's content on the CPU. Objects of other libraries become inert stand-ins."""
    if not path.exists():
        raise InputError(f"no weights at {path}")
    try:
        if path.is_file() and (reason := damage(path)):
            raise InputError(f"{path} is damaged: {reason}; get it again (or rename it, if its name holds no checksum)")
        if path.suffix == ".safetensors":
            return load_file(path)
        source = _zipped(path) if path.is_dir() else path
        if _is_torchscript(source):
            raise InputError(f"{path} holds TorchScript code; only weights are loaded")
        # weights_only refuses files with configuration objects. StandInPickle reads them and runs no code either.
        return torch.load(source, map_location="cpu", pickle_module=StandInPickle, weights_only=False)
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} may not be read: {error}") from error
    except (pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, *DAMAGE) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a readable weights file, damaged or incomplete: {reason}") from error


# What pickle and the tensor builders raise for damaged bytes.
DAMAGE = (AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)


class StandIn(dict[Any, Any]):
    """Stands in for an unknown class or function of a file: takes any argument, does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Ignore it."""

    def append(self, item: object) -> None:
        """Ignore it."""

    extend = add = append


class StandInUnpickler(pickle.Unpickler):
    """Builds containers, numbers, strings and tensors; any other name becomes a StandIn."""

    def find_class(self, module: str, name: str) -> Any:
        return ALLOWED.get((module, name), StandIn)


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class StandInPickle:
    """The part of the pickle module that torch.load uses."""

    __name__ = "StandInPickle"
    Unpickler = StandInUnpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **settings: Any) -> Any:
        return StandInUnpickler(file, **settings).load()


def select_state(content: Any, path: Path, *, ema: bool) -> State:
    """The model's tensors in a file's content, without the prefixes of wrappers."""
    parts = content if isinstance(content, dict) else {}
    found = {key: parts[key] for key in (*AVERAGED, *RAW) if _is_state(parts.get(key))}
    states = [found[key] for key in (*(AVERAGED if ema else ()), *RAW) if key in found]
    states += [content] if _is_state(content) else []
    if not states and found:
        raise InputError(f"{path} holds only averaged weights ({', '.join(found)}); load them with ema")
    if not states:
        raise InputError(f"{path} holds no weights: none of {', '.join((*AVERAGED, *RAW))}, and no tensors at the top")
    tensors = {key: value for key, value in states[0].items() if isinstance(value, torch.Tensor)}
    return {WRAPPERS.sub("", key): value for key, value in tensors.items() if key != "n_averaged"}


def trusted_backbone(node: dict[str, Any], *, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """A checkpoint's backbone node, safe to build, without its weight settings.

    Raises InputError unless `_target_` is in `cotnet.models.__all__` or of a package in `plugins`, a torchvision or
    timm model is one that its library lists, and every setting is a plain value, or an operator of such a package.
    """
    target = str(node.get("_target_"))
    name = target.removeprefix("cotnet.models.")
    package = target.partition(".")[0]
    if package not in plugins and (target == name or name not in models.__all__):
        near = difflib.get_close_matches(name, models.__all__, n=1)
        raise InputError(
            f"backbone._target_ {target!r} is not one of cotnet.models"
            + (f"; nearest: {near[0]}" if near else "")
            + _advice(target)
        )
    settings = {key: value for key, value in node.items() if key not in WEIGHT_SETTINGS and key != "_target_"}
    for key, value in settings.items():
        function = str(value.get("_target_", "")) if key in FUNCTIONS and isinstance(value, dict) else ""
        if function and function.partition(".")[0] not in plugins:
            raise InputError(f"backbone.{key}._target_ {function!r} is not of an admitted package{_advice(function)}")
        rest = {name: one for name, one in value.items() if name != "_target_"} if function else value
        if key.startswith("_") or not _is_plain(rest):
            raise InputError(f"backbone setting {key!r} of {target} is not a plain value; refused")
    lists = {"torchvision_model": is_torchvision_model, "timm_model": is_timm_model}
    if name in lists and not lists[name](str(settings.get("model_name"))):
        raise InputError(f"backbone.model_name={settings.get('model_name')} is not a model of {target}")
    return {"_target_": target, **settings}


def _advice(target: str) -> str:
    package = target.partition(".")[0]
    return (
        ""
        if package == "cotnet" or not package.isidentifier()
        else f"; if you trust the package {package}, add plugins=[{package}]"
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and not key.startswith("_") and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, torch.Tensor) for entry in value.values())


def _check_fit(state: State, own: State, classifier: list[str], path: Path) -> None:
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if other and not missing and not unexpected and set(other) <= set(classifier):
        counts = f"{len(state[other[0]])} classes, the model has {len(own[other[0]])}"
        raise InputError(f"{path} has {counts}; use backbone.head=reset to load everything but the classifier")
    if missing or unexpected or other:
        lists = [("missing", missing), ("unexpected", unexpected), ("of another shape", other)]
        parts = [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in lists if keys]
        raise InputError(f"{path} does not fit the model: keys {', '.join(parts)}")


def _first(keys: list[str], number: int = 5) -> str:
    return ", ".join(keys[:number]) + (", ..." if len(keys) > number else "")


def _zipped(folder: Path) -> io.BytesIO:
    """An unzipped weights file (a folder with data.pkl and data/), zipped again in memory."""
    inner = sorted(folder.glob("data.pkl")) or sorted(folder.glob("*/data.pkl"))
    if not inner:
        raise InputError(f"{folder} is a folder without data.pkl; give a weights file, or the folder unzipped from one")
    root, buffer = inner[0].parent, io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, Path("archive") / file.relative_to(root))
    buffer.seek(0)
    return buffer


def _is_torchscript(source: Path | io.BytesIO) -> bool:
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        names = archive.namelist()
    if isinstance(source, io.BytesIO):
        source.seek(0)
    return any(name.endswith("constants.pkl") for name in names)
