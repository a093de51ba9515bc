"""What timm expects of a model: `Backbone` has its methods, `register` puts constructors into its list."""

import abc
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, get_args, get_type_hints

import torch
from torch import nn

from cotnet.models.checkpointing import Stage, checkpoint_stages
from cotnet.models.freezing import PartlyFrozen

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# timm's names of settings -> ours
SETTINGS = {
    "drop_rate": "dropout",
    "drop_path_rate": "drop_path",
    "in_chans": "in_channels",
    "img_size": "image_size",
}
# Arguments of timm.create_model that are about weights and features, not about the network.
ASIDE: Final = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only", "out_indices", "feature_cfg")


class Backbone(PartlyFrozen, abc.ABC):
    """A classifier with stages, with the methods of a timm model.

    `classifier` names the last linear layer, an nn.Identity without classes. `first_conv` names the first convolution.
    """

    stage_channels: Sequence[int]
    stage_strides: Sequence[int]
    classifier = "head"
    first_conv = "patch_embed1.proj"
    side = 224  # nominal height and width of the images, in pixels
    output_formats: Sequence[str] = ("NCHW",)  # of forward_intermediates

    @abc.abstractmethod
    def forward_stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps of all stages, (B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """What `forward_head` takes."""
        return self.forward_stages(images)[-1]

    @abc.abstractmethod
    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002
        """Features -> logits, or the pooled features (B, num_features) that the classifier gets."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))

    @property
    def num_features(self) -> int:
        """Channels of the features that the classifier gets."""
        return self.stage_channels[-1]

    head_hidden_size = num_features

    @property
    def num_classes(self) -> int:
        """Classes; 0 without a classifier."""
        return getattr(self.get_classifier(), "out_features", 0)

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0: none, the model returns pooled features. Raises ValueError for another pooling."""
        if global_pool not in (None, "", "avg", "token"):
            raise ValueError(f"global_pool={global_pool} is unknown here; leave it out")
        like = next(self.parameters())
        head = classifier(self.num_features, num_classes).to(like.device, like.dtype)
        self.set_submodule(self.classifier, head)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of each stage."""
        names = [name for name, child in self.named_children() if isinstance(child, Stage)]
        rows = zip(self.stage_channels, self.stage_strides, names, strict=True)
        return [{"num_chs": channels, "reduction": stride, "module": name} for channels, stride, name in rows]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Where the classifier is and how images are prepared: 224 px, crop ratio 0.875, bicubic, ImageNet's mean."""
        first = self.get_submodule(self.first_conv)
        return {
            "num_classes": self.num_classes,
            "input_size": (getattr(first, "in_channels", 3), self.side, self.side),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": MEAN,
            "std": STD,
            "classifier": self.classifier,
            "first_conv": self.first_conv,
        }

    default_cfg = pretrained_cfg

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002
        """Recompute the blocks of all stages in the backward pass."""
        checkpoint_stages(self, tuple(range(1, len(self.stage_channels) + 1)) if enable else ())

    def forward_intermediates(  # noqa: PLR0917 - timm's arguments
        self,
        images: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,  # noqa: FBT001, FBT002
        stop_early: bool = False,  # noqa: FBT001, FBT002
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,  # noqa: FBT001, FBT002
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps in `indices` of `feature_info` (a number: the last so many; None: all), and the features, unless
        `intermediates_only`. `norm` and `stop_early` change nothing. `output_fmt`: maps (B, C, H, W), NCHW, or of
        transformers their tokens (B, H * W, C), NLC. Raises ValueError for other indices or another format."""
        del norm, stop_early
        if output_fmt not in self.output_formats:
            raise ValueError(f"output_fmt={output_fmt} is unknown here; give {' or '.join(self.output_formats)}")
        kept: list[torch.Tensor] = []
        features = self.forward_features_keeping(images, kept)
        maps = [kept[index] for index in chosen(indices, len(kept))]
        if output_fmt == "NLC":
            maps = [one.flatten(2).transpose(1, 2) for one in maps]
        return maps if intermediates_only else (features, maps)

    def forward_features_keeping(self, images: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
        """`forward_features`; appends the maps that `feature_info` lists to `kept`."""
        kept += self.forward_stages(images)
        return kept[-1]

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,  # noqa: FBT001, FBT002
        prune_head: bool = True,  # noqa: FBT001, FBT002
    ) -> list[int]:
        """Removes the stages after the last map in `indices`, and the classifier. Returns the indices from 0 up."""
        del prune_norm, prune_head
        kept = chosen(indices, len(self.feature_info))
        self.set_submodule(self.classifier, nn.Identity())
        stages = max(kept) + 1 - len(self.feature_info) + len(self.stage_channels)
        for name in (name for names in self.stage_parts()[1 + stages :] for name in names):
            delattr(self, name)
        self.stage_channels, self.stage_strides = self.stage_channels[:stages], self.stage_strides[:stages]
        return kept


def chosen(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Indices from 0 up of `count` maps: the last so many for a number, all for None, negative ones from the end.

    Raises ValueError for maps that are not there.
    """
    last = count if indices is None else indices
    places = range(-last, 0) if isinstance(last, int) else last
    if not places or not all(-count <= place < count for place in places):
        raise ValueError(
            f"indices={last if isinstance(last, int) else list(last)}: the model has {count} maps; "
            f"list some of 0 to {count - 1}, or give how many of the last"
        )
    return [place % count for place in places]


def classifier(features: int, num_classes: int) -> nn.Module:
    """A linear layer, or nothing for 0 classes."""
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


def register(constructors: Mapping[str, Callable[..., Backbone]]) -> list[str]:
    """Lets `timm.create_model(name)` call the constructors; returns the names that timm has not itself."""
    import timm

    new = [name for name in constructors if not timm.is_model(name)]
    for name in new:
        timm.models.register_model(_entrypoint(name, constructors[name]))
    return new


def _entrypoint(name: str, construct: Callable[..., Backbone]) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **given: Any) -> nn.Module:  # noqa: FBT001, FBT002
        if pretrained:
            raise ValueError(f"{name} has no weights to download; give a file with checkpoint_path=PATH")
        features_only, indices = given.get("features_only", False), given.get("out_indices")
        settings = {SETTINGS.get(key, key): value for key, value in given.items() if key not in ASIDE}
        known = setting_names(construct)
        if unknown := sorted(settings.keys() - known):
            raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
        if features_only:
            from timm.models._features import FeatureGetterNet

            model = construct(**settings | {"num_classes": 0})
            return FeatureGetterNet(model, out_indices=chosen(indices, len(model.feature_info)))
        return construct(**settings)

    entrypoint.__name__ = name
    entrypoint.__doc__ = inspect.getdoc(construct)
    return entrypoint


def setting_names(construct: Callable[..., Backbone]) -> list[str]:
    """The names of a constructor's settings, with those of its typed dictionary."""
    names: list[str] = []
    for parameter in inspect.signature(construct).parameters.values():
        shared = get_args(parameter.annotation) if parameter.kind is parameter.VAR_KEYWORD else ()
        names += get_type_hints(shared[0]) if shared else [parameter.name]
    return names
