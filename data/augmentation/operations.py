"""The operations of RandAugment and TrivialAugment on a uint8 batch, each as PIL computes it.

These define the pixels. `fused.py` computes the same pixels on a GPU, in one kernel for all operations.

images: (n, 3, H, W) uint8; they are not changed. parameters: (n, 3) float64 on the same device: the operation's value,
then row and column as shares of the image, which only `cutout` uses. Returns the new pixels.

Colour operations equal PIL's ImageOps and ImageEnhance. Geometric ones equal Image.transform, whose bicubic filter is
Keys' (1981) with a = -1 (PIL's resize: -0.5, torch's: -0.75).
"""
# ruff: noqa: ARG001 (one signature for all operations)

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch


class Canvas(NamedTuple):
    """How geometric operations sample, and the colour beyond the border."""

    interpolation: str  # bilinear or bicubic
    fill: tuple[int, int, int]


Operation = Callable[[torch.Tensor, torch.Tensor, Canvas], torch.Tensor]
Table = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images, parameters -> (n, 3 or 1, 256) new levels
# For each sixth of the colour circle, red, green and blue as indices of (largest, falling, down, rising).
_SECTORS: Final = ((0, 3, 2), (1, 0, 2), (2, 0, 3), (2, 1, 0), (3, 2, 0), (0, 2, 1))


@lru_cache(maxsize=64)
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The values on a device, kept there: a copy makes the host wait."""
    return torch.tensor(values, dtype=dtype, device=device)


def _value(parameters: torch.Tensor) -> torch.Tensor:
    return parameters[:, 0, None, None, None]  # (n, 1, 1, 1)


def _row(parameters: torch.Tensor) -> torch.Tensor:
    return parameters[:, :1, None].float()  # (n, 1, 1)


def _to_pixels(images: torch.Tensor) -> torch.Tensor:
    return images.clamp_(0, 255).to(torch.uint8)  # truncated, as in PIL's C code


def _blend(degenerate: torch.Tensor, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """ImageEnhance: degenerate + factor x (image - degenerate) in float32."""
    start = degenerate.float()
    return _to_pixels(start + _value(parameters).float() * (images - start))


def _over(x: torch.Tensor, number: float) -> torch.Tensor:
    """x / number with one rounding: CUDA divides by a number by multiplying with its rounded reciprocal."""
    return x / x.new_full((), number)


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luma (n, 1, H, W) int32 of ITU-R 601-2, in PIL's 16-bit fixed point."""
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return (19595 * red).add_(green, alpha=38470).add_(blue, alpha=7471).add_(0x8000).bitwise_right_shift_(16)


@lru_cache(maxsize=16)
def _levels(device: torch.device) -> torch.Tensor:
    return torch.arange(256, device=device)


def to_levels(table: torch.Tensor) -> torch.Tensor:
    """(n, 3, 256) uint8, truncated, from an operation's table."""
    return table.clamp(0, 255).to(torch.uint8).expand(-1, 3, -1)


def _look_up(name: str) -> Operation:
    """The operation that maps levels to levels by its table, the fastest way."""

    def operation(images: torch.Tensor, parameters: torch.Tensor, canvas: Canvas) -> torch.Tensor:
        table = to_levels(TABLES[name](images, parameters))
        return table.gather(2, images.flatten(2).long()).view_as(images)

    return operation


def contrast(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    mean = _over(grey(images).sum((2, 3)).double(), images.shape[2] * images.shape[3])
    start = mean.add(0.5).floor().float()[..., None]
    return start + _row(parameters) * (_levels(images.device) - start)


def brightness(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    return _levels(images.device).float() * _row(parameters)


def sharpness(images: torch.Tensor, parameters: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """The degenerate image is PIL's SMOOTH: weights 1, 5 in the middle, over 13; the border stays."""
    wide = images.to(torch.int16)
    rows = wide[..., :-2, :] + wide[..., 1:-1, :]
    rows += wide[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1]
    total += rows[..., 2:]
    total.add_(wide[..., 1:-1, 1:-1], alpha=4)
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = total.float().div_(13).add_(0.5).to(torch.uint8)
    return _blend(smooth, images, parameters)


def hue(images: torch.Tensor, parameters: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """Shift by a share of the circle, with the roundings of PIL's 8-bit HSV."""
    pixels = images.float()
    largest, smallest = pixels.amax(1), pixels.amin(1)
    span = (largest - smallest).clamp(min=1)  # 0 only for grey, whose saturation is 0
    red, green, blue = ((largest[:, None] - pixels) / span[:, None]).double().unbind(1)
    red_leads, green_leads = pixels[:, 0] == largest, pixels[:, 1] == largest
    sixths = torch.where(red_leads, blue - green, torch.where(green_leads, 2 + red - blue, 4 + green - red))
    turned = (((_over(sixths.float().double(), 6) + 1) % 1).float() * 255).floor()
    turned = (turned + torch.trunc(_value(parameters)[:, 0] * 255)) % 256
    saturation = _over(((largest - smallest) / largest.clamp(min=1)).double().mul(255).floor().float(), 255)
    sixth = _over(turned * 6, 255)
    share = (sixth - sixth.floor()).float()
    down, falling, rising = (
        (largest * (1 - saturation * part) + 0.5).floor() for part in (torch.ones_like(share), share, 1 - share)
    )
    levels = torch.stack([largest, falling, down, rising]).to(torch.uint8)
    sector = sixth.floor().long() % 6
    channels = constant(_SECTORS, torch.int64, images.device)[sector]
    return levels.gather(0, channels.movedim(-1, 0)).movedim(0, 1)


def posterize_mask(parameters: torch.Tensor) -> torch.Tensor:
    """(n, 1, 1, 1): the bits of a level that stay."""
    return (256 - 2 ** (8 - _value(parameters).clamp(0, 8))).to(torch.uint8)


def posterize(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    return _levels(images.device) & posterize_mask(parameters)[..., 0].long()


def invert(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    return (255 - _levels(images.device)).expand(len(images), 1, -1)


def solarize(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    levels = _levels(images.device)
    return torch.where(levels < parameters[:, :1, None], levels, 255 - levels)


def solarize_add(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    levels = _levels(images.device)
    return torch.where(levels < 128, levels + parameters[:, :1, None], levels)


def autocontrast(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0 to 255; a channel of one level stays."""
    low, high = (bound[..., None].double() for bound in images.flatten(2).aminmax(dim=2))
    scale = torch.full_like(low, 255) / (high - low)  # 255 / tensor rounds otherwise: it multiplies by the reciprocal
    levels = _levels(images.device).double()
    return torch.where(high > low, levels * scale - low * scale, levels)


def equalize(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Flatten each channel's histogram. As in PIL, the step excludes the brightest level."""
    flat = images.flatten(2).long()
    histogram = torch.zeros(*flat.shape[:2], 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, flat, histogram.new_ones(1).expand_as(flat))
    return equalized(images, histogram)


def equalized(images: torch.Tensor, histogram: torch.Tensor) -> torch.Tensor:
    """The table of `equalize` from the channels' histograms (n, 3, 256) int32."""
    brightest = histogram.gather(2, images.flatten(2).amax(2, keepdim=True).long())
    step = (images.shape[2] * images.shape[3] - brightest).div(255, rounding_mode="floor")
    below = histogram.cumsum(2) - histogram
    table = (step // 2 + below).div(step.clamp(min=1), rounding_mode="floor")
    return torch.where(step > 0, table, _levels(images.device))


def cutout(images: torch.Tensor, parameters: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """A square of side 2 `value` + 1 in the fill colour, as CoTNet's release draws it.

    The centre lies between the far side (share 0) and 1 (share 1), as `np.random.uniform(side)` draws it. Near the top
    and left edges the square moves inwards, at the other edges it is cut. + 1: PIL fills both ends of a rectangle.
    """
    square = cutout_square(parameters, *images.shape[-2:])
    return erase(images, square, values=constant(canvas.fill, torch.uint8, images.device)[:, None, None])


def cutout_square(parameters: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(n, 4) int64: top, left, height and width of what `cutout` fills."""
    half, row, column = parameters.unbind(1)
    top, left = (
        (side + (1 - side) * share - half).clamp(min=0).floor() for side, share in ((height, row), (width, column))
    )
    return torch.stack([top, left, 2 * half + 1, 2 * half + 1], dim=1).long()


def erase(images: torch.Tensor, boxes: torch.Tensor, *, values: torch.Tensor) -> torch.Tensor:
    """Images (n, C, H, W) with `values`, which broadcast to them, inside boxes (n, 4)."""
    top, left, height, width = boxes[:, :, None].unbind(1)  # each (n, 1)
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    inside_rows = (rows >= top) & (rows < top + height)  # (n, H)
    inside_columns = (columns >= left) & (columns < left + width)  # (n, W)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]  # (n, 1, H, W)
    return torch.where(inside, values, images)


def rotate(images: torch.Tensor, parameters: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    """Counter-clockwise, in degrees, about the centre."""
    x, y = _pixel_centers(images)
    x, y = x - images.shape[3] / 2, y - images.shape[2] / 2
    less, sin = (part[:, None, None] for part in rotation(parameters))
    return _resample(images, less * x + sin * y, less * y - sin * x, canvas)


def rotation(parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos - 1 and sin, (n,) float32 each, of the angle at which `rotate` reads."""
    angle = -torch.deg2rad(parameters[:, 0])
    return (angle.cos() - 1).float(), angle.sin().float()


def _pixel_centers(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = images.shape[-2:]
    y = torch.arange(height, dtype=torch.float32, device=images.device)[:, None] + 0.5
    x = torch.arange(width, dtype=torch.float32, device=images.device) + 0.5
    return x, y


def _filter_pixels(
    offset: torch.Tensor | None, own: torch.Tensor, *, size: int, interpolation: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(index, weight) of each pixel along one axis that contributes to the position `own` + `offset`.

    Indices are float32: exact up to 4096 x 4096 pixels, in half the time of int64.
    """
    if offset is None:
        return [(own, torch.ones(1, 1, 1, device=own.device))]
    whole = offset.floor()
    d = offset - whole
    if interpolation == "bilinear":
        weights = {0: 1 - d, 1: d}
    else:
        outer, inner = d * (d - 1), 1 + d * (1 - d)
        weights = {-1: outer * (1 - d), 0: (1 - d) * inner, 1: d * inner, 2: outer * d}
    first = own + whole
    return [((first + step).clamp_(0, size - 1), weight) for step, weight in weights.items()]


def _resample(images: torch.Tensor, x: torch.Tensor | None, y: torch.Tensor | None, canvas: Canvas) -> torch.Tensor:
    """Read each pixel x columns and y rows further on: float32, broadcast to (n, H, W); None for no offset."""
    count, channels, height, width = images.shape
    own_x, own_y = (torch.arange(size, dtype=torch.float32, device=images.device) for size in (width, height))
    own_y, kind = own_y[:, None], canvas.interpolation
    columns = _filter_pixels(x, own_x, size=width, interpolation=kind)
    rows = [(row * width, weight) for row, weight in _filter_pixels(y, own_y, size=height, interpolation=kind)]
    flat = images.flatten(2).float()
    total = torch.zeros_like(images, dtype=torch.float32)
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = (row + column).long().expand(count, height, width).reshape(count, 1, -1)
            pixels = flat.gather(2, index.expand(-1, channels, -1)).view_as(images)
            total.addcmul_(pixels, (row_weight * column_weight)[:, None])
    inside = torch.ones(1, 1, 1, dtype=torch.bool, device=images.device)
    for offset, own, size in ((x, own_x, width), (y, own_y, height)):
        if offset is not None:
            source = own + 0.5 + offset
            inside = inside & (source >= 0) & (source < size)
    # PIL truncates doubles: a float32 sum just below a whole level must not lose it.
    fill = constant(canvas.fill, torch.uint8, images.device)[:, None, None]
    # torch.where in arithmetic modulo 256: six times as fast for a mask shared by the channels.
    return _to_pixels(total.add_(1e-3)).sub_(fill).mul_(inside[:, None].to(torch.uint8)).add_(fill)


IMAGE_TABLES: Final[dict[str, Table]] = {"contrast": contrast, "autocontrast": autocontrast, "equalize": equalize}
TABLES: Final[dict[str, Table]] = {
    **IMAGE_TABLES,
    "brightness": brightness,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
}
OPERATIONS: Final[dict[str, Operation]] = {
    **{name: _look_up(name) for name in TABLES},
    "invert": lambda images, _parameters, _canvas: 255 - images,  # without a table: the same, and faster on a CPU
    "posterize": lambda images, bits, _canvas: images & posterize_mask(bits),
    "identity": lambda images, _parameters, _canvas: images,
    "color": lambda images, factor, _: _blend(grey(images), images, factor),
    "sharpness": sharpness,
    "hue": hue,
    "cutout": cutout,
    "shear_x": lambda images, shear, canvas: _resample(images, _row(shear) * _pixel_centers(images)[1], None, canvas),
    "shear_y": lambda images, shear, canvas: _resample(images, None, _row(shear) * _pixel_centers(images)[0], canvas),
    "translate_x": lambda images, shift, canvas: _resample(images, _row(shift), None, canvas),
    "translate_y": lambda images, shift, canvas: _resample(images, None, _row(shift), canvas),
    "rotate": rotate,
}
