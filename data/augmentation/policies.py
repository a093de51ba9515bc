"""Which operations a sample gets, in which order and how strong: RandAugment's flavours and TrivialAugment.

RandAugment: Cubuk et al., 2019. TrivialAugment-wide: Mueller and Hutter, 2021. "RandAugment m9 n2" differs between code
bases, so the flavour is part of the name:

- rand-cot-m15-n2-mstd0.5: CoTNet's. 16 operations, with Cutout (up to 121 x 121 pixels), Invert and SolarizeAdd.
  Magnitude normal, at most 15 on a scale of 10. Each operation fires with a probability drawn from U(0.2, 0.8).
- rand-timm-m9-n2-mstd0.5-inc1: timm's. 15 operations. Magnitude normal, within 0 and 10. Each fires with 0.5. inc1
  takes the variants that grow stronger with the magnitude.
- rand-torchvision-m9-n2: torchvision's. 14 operations, with Identity. An integer magnitude of 31 bins. All fire.
- trivial-wide: one of torchvision's 14 operations, with a uniform bin of 31 and wide ranges.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from cotnet.errors import DataError
from data.loading.random import Stream, normals, uniforms


class _Drawn(NamedTuple):
    level: np.ndarray  # 1 is the flavour's full strength
    signed: np.ndarray  # the level with a drawn sign
    side: int  # of the image, along the operation's axis


_Value = Callable[[_Drawn], np.ndarray]  # computes the operation's value
_ENHANCEMENTS: Final = ("color", "contrast", "brightness", "sharpness")
_GEOMETRY: Final = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_COMMON: Final = ("autocontrast", "equalize", "posterize", "solarize", *_ENHANCEMENTS, *_GEOMETRY)
_FLAVOURS: Final = {
    "cot": (*_COMMON, "invert", "solarize_add", "cutout"),
    "timm": (*_COMMON, "invert", "solarize_add"),
    "timm-inc1": (*_COMMON, "invert", "solarize_add"),
    "torchvision": (*_COMMON, "identity"),
    "wide": (*_COMMON, "identity"),
}
LARGEST: Final = {"cot": 15, "timm": 10, "timm-inc1": 10}  # larger magnitudes are clipped
_BINS: Final = 31
_NAME: Final = re.compile(
    r"rand-(?P<flavour>cot|timm|torchvision)-m(?P<magnitude>\d{1,3})-n(?P<count>[1-9])"
    r"(-mstd(?P<spread>\d{1,3}(\.\d{1,9})?))?(?P<variant>-inc1)?"
)
_DRAWS: Final = 8  # per operation: which, fires, with what probability, magnitude (2), sign, place (2)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Per sample: `count` of `operations`, with replacement."""

    flavour: str
    operations: tuple[str, ...]
    count: int = 1
    magnitude: float = 0.0
    spread: float = 0.0  # standard deviation of the magnitude

    @property
    def fills_with_mean(self) -> bool:
        """Whether pixels from beyond the border have the set's mean colour instead of black."""
        return self.flavour in ("cot", "timm", "timm-inc1")


def parse(name: str) -> Policy:
    """The policy of a name such as rand-timm-m9-n2-mstd0.5-inc1 or trivial-wide; DataError for any other."""
    if name == "trivial-wide":
        return Policy(flavour="wide", operations=_FLAVOURS["wide"])
    found = _NAME.fullmatch(name)
    given = found.groupdict() if found else {}
    flavour = f"{given.get('flavour')}{given.get('variant') or ''}"
    bins_only = flavour == "torchvision" and (given["spread"] or int(given["magnitude"]) >= _BINS)
    if flavour not in _FLAVOURS or bins_only:
        raise DataError(
            f"policy={name} is unknown; use rand-cot-m15-n2-mstd0.5, rand-timm-m9-n2-mstd0.5-inc1, "
            f"rand-torchvision-m9-n2 (magnitude up to {_BINS - 1}), other numbers in their place, or trivial-wide"
        )
    numbers = {"magnitude": float(given["magnitude"]), "spread": float(given["spread"] or 0)}
    return Policy(flavour=flavour, operations=_FLAVOURS[flavour], count=int(given["count"]), **numbers)


def draw(
    policy: Policy, samples: np.ndarray, *, seed: int, epoch: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n, count) indices into policy.operations, -1 for none, and (n, count, 3) parameters for operations.py.

    samples: (n,) plan indices; height, width: of the images.
    """
    uniform = uniforms(seed, epoch, Stream.POLICY, samples, _DRAWS * policy.count).reshape(-1, policy.count, _DRAWS)
    which, fires, chance, _, _, sign, *place = np.moveaxis(uniform, -1, 0)
    operation = (which * len(policy.operations)).astype(np.int64)
    level = _levels(policy, normals(uniform[..., 3:5])[..., 0], uniform=chance)
    signed = np.where(sign < 0.5, -level, level)
    value = np.zeros(operation.shape)
    for index, name in enumerate(policy.operations):
        if rule := _VALUES[policy.flavour].get(name.removesuffix("_x").removesuffix("_y")):
            rows = operation == index
            value[rows] = rule(_Drawn(level[rows], signed[rows], height if name.endswith("_y") else width))
    probability = {"cot": 0.2 + 0.6 * chance, "torchvision": 1.0, "wide": 1.0}.get(policy.flavour, 0.5)
    return np.where(fires < probability, operation, -1), np.stack([value, *place], axis=-1)


def _levels(policy: Policy, normal: np.ndarray, *, uniform: np.ndarray) -> np.ndarray:
    """(n, count) magnitudes; 1 is the flavour's full strength."""
    if policy.flavour == "wide":
        return np.floor(uniform * _BINS) / (_BINS - 1)
    if policy.flavour == "torchvision":
        return np.full(normal.shape, policy.magnitude / (_BINS - 1))
    return np.clip(policy.magnitude + policy.spread * normal, 0, LARGEST[policy.flavour]) / 10


def _signed(strength: float) -> _Value:
    return lambda drawn: strength * drawn.signed


_TENTHS: Final[dict[str, _Value]] = {
    "rotate": _signed(30),
    "shear": _signed(0.3),
    "posterize": lambda drawn: np.trunc(4 * drawn.level),
    "solarize": lambda drawn: np.trunc(256 * drawn.level),
    "solarize_add": lambda drawn: np.trunc(110 * drawn.level),
    **dict.fromkeys(_ENHANCEMENTS, lambda drawn: 1.8 * drawn.level + 0.1),
}
_TIMM: Final[dict[str, _Value]] = {**_TENTHS, "translate": lambda drawn: 0.45 * drawn.side * drawn.signed}
_VALUES: Final[dict[str, dict[str, _Value]]] = {
    "cot": {**_TENTHS, "translate": _signed(100), "cutout": lambda drawn: np.trunc(40 * drawn.level)},
    "timm": _TIMM,
    "timm-inc1": {
        **_TIMM,
        "posterize": lambda drawn: 4 - np.trunc(4 * drawn.level),
        "solarize": lambda drawn: 256 - np.trunc(256 * drawn.level),
        **dict.fromkeys(_ENHANCEMENTS, lambda drawn: np.maximum(0.1, 1 + 0.9 * drawn.signed)),
    },
    "torchvision": {
        "rotate": _signed(30),
        "shear": _signed(0.3),
        "translate": lambda drawn: np.trunc(150 / 331 * drawn.side * drawn.signed),
        "posterize": lambda drawn: np.rint(8 - 4 * drawn.level),
        "solarize": lambda drawn: 255 * (1 - drawn.level),
        **dict.fromkeys(_ENHANCEMENTS, lambda drawn: 1 + 0.9 * drawn.signed),
    },
    "wide": {
        "rotate": _signed(135),
        "shear": _signed(0.99),
        "translate": lambda drawn: np.trunc(32 * drawn.signed),
        "posterize": lambda drawn: np.rint(8 - 6 * drawn.level),
        "solarize": lambda drawn: 255 * (1 - drawn.level),
        **dict.fromkeys(_ENHANCEMENTS, lambda drawn: 1 + 0.99 * drawn.signed),
    },
}
