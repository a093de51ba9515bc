"""Classifiers of torchvision and timm by name, with fresh weights. Each library is imported when it is first used."""

from collections.abc import Callable
from typing import Annotated, Any

from torch import nn

from cotnet.errors import InputError
from cotnet.models.resnet_base import NumClasses
from cotnet.models.spec import constructor
from cotnet.settings import Setting

__all__ = ["timm_model", "torchvision_model"]
ModelName = Annotated[str, Setting("one of torchvision.models.list_models() or of timm.list_models()")]
Other = Annotated[Any, Setting("a setting of the library's constructor")]


@constructor
def torchvision_model(*, model_name: ModelName, num_classes: NumClasses = 1000, **settings: Other) -> nn.Module:
    """A torchvision classifier.

    Raises InputError for an unknown name or setting.
    """
    if not is_torchvision_model(model_name):
        raise InputError(f"torchvision has no classifier {model_name!r}; see torchvision.models.list_models()")
    import torchvision

    inception = {"aux_logits": False, "init_weights": True} if model_name in ("googlenet", "inception_v3") else {}
    settings = {"weights": None, "num_classes": num_classes, **inception, **settings}
    return _create("torchvision", torchvision.models.get_model, model_name, settings)


@constructor
def timm_model(*, model_name: ModelName, num_classes: NumClasses = 1000, **settings: Other) -> nn.Module:
    """A timm model.

    Raises InputError for an unknown name or setting, or if timm is not installed.
    """
    if not is_timm_model(model_name):
        raise InputError(f"timm has no model {model_name!r}; see timm.list_models()")
    import timm

    return _create("timm", timm.create_model, model_name, {"pretrained": False, "num_classes": num_classes, **settings})


def _create(library: str, constructor: Callable[..., nn.Module], name: str, settings: dict[str, Any]) -> nn.Module:
    try:
        return constructor(name, **settings)
    except TypeError as error:
        raise InputError(f"{library}'s {name} does not take these settings: {error}") from error


def is_torchvision_model(name: str) -> bool:
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models)


def is_timm_model(name: str) -> bool:
    """Whether timm lists the name (timm would also load hubs and folders). Raises InputError without timm."""
    try:
        import timm
    except ImportError as error:
        raise InputError("timm is not installed; pip install 'cotnet[timm]'") from error
    return name in timm.list_models()
