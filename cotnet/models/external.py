"""Classifiers of torchvision and timm by name, always with fresh weights; a library is imported when it is named."""

from typing import Any

from torch import nn

from cotnet.errors import InputError


def torchvision_model(*, model_name: str, num_classes: int = 1000, **settings: Any) -> nn.Module:
    """The torchvision classifier of that name (torchvision.models.list_models); settings go to its constructor.

    Raises InputError for a name that is none, or settings that it does not take.
    """
    if not is_torchvision_model(model_name):
        raise InputError(f"torchvision has no classifier {model_name!r}; see torchvision.models.list_models()")
    import torchvision

    inception = {"aux_logits": False, "init_weights": True} if model_name in ("googlenet", "inception_v3") else {}
    try:
        model: nn.Module = torchvision.models.get_model(
            model_name, weights=None, num_classes=num_classes, **{**inception, **settings}
        )
    except TypeError as error:
        raise InputError(f"torchvision's {model_name} does not take these settings: {error}") from error
    return model


def timm_model(*, model_name: str, num_classes: int = 1000, **settings: Any) -> nn.Module:
    """The timm model of that name (timm.list_models); settings go to timm.create_model.

    Raises InputError for a name that is none, settings that it does not take, or if timm is not installed.
    """
    if not is_timm_model(model_name):
        raise InputError(f"timm has no model {model_name!r}; see timm.list_models()")
    import timm

    try:
        model: nn.Module = timm.create_model(model_name, pretrained=False, num_classes=num_classes, **settings)
    except TypeError as error:
        raise InputError(f"timm's {model_name} does not take these settings: {error}") from error
    return model


def is_torchvision_model(name: str) -> bool:
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models)


def is_timm_model(name: str) -> bool:
    """Whether timm itself has the name, not a hub or a folder, which timm would also take; InputError without timm."""
    try:
        import timm
    except ImportError as error:
        raise InputError("timm is not installed; pip install 'cotnet[timm]'") from error
    return name in timm.list_models()
