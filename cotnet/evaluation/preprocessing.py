"""How torchvision's and timm's published models want their images: size, crop, filter, mean and deviation."""

from pathlib import Path
from typing import Any

from cotnet.errors import InputError


def own_preprocessing(library: str, model_name: str, weights: Path) -> dict[str, Any]:
    """The `data` settings of a published model: eval_size, crop_ratio, eval_interpolation, mean, std.

    library: torchvision_model or timm_model. weights: the file; its name tells torchvision's versions apart.

    Raises:
        InputError: the library knows no preprocessing for it, or one that this evaluation cannot do.
    """
    return _of_timm(model_name) if library == "timm_model" else _of_torchvision(model_name, weights)


def _of_timm(model_name: str) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(model_name)
    if known is None:
        raise InputError(f"timm knows no preprocessing of {model_name}; set data.preprocessing=checkpoint")
    if known.crop_mode != "center" or known.interpolation not in ("bilinear", "bicubic"):
        raise InputError(
            f"{model_name} wants crop mode {known.crop_mode} and the filter {known.interpolation}, which this "
            "evaluation does not have; set data.preprocessing=checkpoint and data.eval_interpolation=bicubic"
        )
    return {
        "image_size": known.input_size[-1],
        "eval_size": known.input_size[-1],
        "crop_ratio": float(known.crop_pct),
        "eval_interpolation": known.interpolation,
        "mean": list(known.mean),
        "std": list(known.std),
    }


def _of_torchvision(model_name: str, weights: Path) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    versions = list(get_model_weights(model_name))
    if not versions:
        raise InputError(f"torchvision knows no preprocessing of {model_name}; set data.preprocessing=checkpoint")
    same = [one for one in versions if one.url.rpartition("/")[2] == weights.name]
    preset = (same or versions)[0].transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    return {
        "image_size": crop,
        "eval_size": crop,
        "crop_ratio": crop / (resize + 0.5),  # int(crop / ratio) is resize again
        "eval_interpolation": preset.interpolation.value,
        "mean": list(preset.mean),
        "std": list(preset.std),
    }
