"""The Triton kernels of the augmentation: a turn of operations over a batch, and levels through a table.

The arithmetic is that of `operations.py`, operation for operation in float32, so the pixels are the same. Launches
forbid the compiler to contract products and sums; where PyTorch's CPU kernels contract them (`addcmul`), so does the
kernel. Images are contiguous (n, 3, H, W). A program has one image and BLOCK of its pixels, in all three channels.
"""

import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from data.augmentation.operations import TABLES

COPY, LOOK_UP, COLOR, SHARPNESS, CUTOUT, RESAMPLE = range(6)
_LOOK_UP, _COLOR, _SHARPNESS, _CUTOUT, _RESAMPLE = map(tl.constexpr, range(1, 6))
CODES = {
    **dict.fromkeys(TABLES, LOOK_UP),
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y", "rotate"), RESAMPLE),
    "color": COLOR,
    "sharpness": SHARPNESS,
    "cutout": CUTOUT,
}
NUMBERS, FILL = 11, 8  # float32 numbers of an image and turn: its operation's, then the colour beyond the border
_NUMBERS, _FILL = tl.constexpr(NUMBERS), tl.constexpr(FILL)


@triton.jit
def _blend(start, pixel, factor):
    """ImageEnhance: start + factor x (pixel - start), truncated to a level."""
    value = start + factor * (pixel.to(tl.float32) - start)
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32).to(tl.uint8)


@triton.jit
def _copy_or_look_up(source, result, table, pixel, inside, size, LOOK: tl.constexpr):
    for channel in tl.static_range(3):
        levels = tl.load(source + channel * size + pixel, inside)
        if LOOK:
            levels = tl.load(table + channel * 256 + levels.to(tl.int32), inside)
        tl.store(result + channel * size + pixel, levels, inside)


@triton.jit
def _color(source, result, numbers, pixel, inside, size):
    red = tl.load(source + pixel, inside).to(tl.int32)
    green = tl.load(source + size + pixel, inside).to(tl.int32)
    blue = tl.load(source + 2 * size + pixel, inside).to(tl.int32)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    factor, start = tl.load(numbers), luma.to(tl.float32)
    tl.store(result + pixel, _blend(start, red, factor), inside)
    tl.store(result + size + pixel, _blend(start, green, factor), inside)
    tl.store(result + 2 * size + pixel, _blend(start, blue, factor), inside)


@triton.jit
def _sharpness(source, result, numbers, pixel, inside, height, width):
    size, factor = height * width, tl.load(numbers)
    row, column = pixel // width, pixel % width
    inner = inside & (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    for channel in tl.static_range(3):
        center = source + channel * size + pixel
        own = tl.load(center, inside).to(tl.int32)
        total = 4 * own
        for tap in tl.static_range(9):
            total += tl.load(center + (tap // 3 - 1) * width + tap % 3 - 1, inner, 0).to(tl.int32)
        smooth = tl.where(inner, (2 * total + 13) // 26, own)  # total / 13, rounded; never half-way
        tl.store(result + channel * size + pixel, _blend(smooth.to(tl.float32), own, factor), inside)


@triton.jit
def _cutout(source, result, numbers, pixel, inside, height, width):
    row, column = (pixel // width).to(tl.float32), (pixel % width).to(tl.float32)
    top, left = tl.load(numbers), tl.load(numbers + 1)
    in_rows = (row >= top) & (row < top + tl.load(numbers + 2))
    cut = in_rows & (column >= left) & (column < left + tl.load(numbers + 3))
    for channel in tl.static_range(3):
        place = channel * height * width + pixel
        fill = tl.load(numbers + _FILL + channel).to(tl.uint8)
        tl.store(result + place, tl.where(cut, fill, tl.load(source + place, inside)), inside)


@triton.jit
def _weight(d, TAP: tl.constexpr, BICUBIC: tl.constexpr):
    """The weight of the pixel TAP (0 to 3, or 1 to 2 of bilinear) at the distance d from the pixel 1."""
    outer, inner = d * (d - 1), 1 + d * (1 - d)
    if BICUBIC:
        if TAP == 0:
            weight = outer * (1 - d)
        elif TAP == 1:
            weight = (1 - d) * inner
        elif TAP == 2:
            weight = d * inner
        else:
            weight = outer * d
    elif TAP == 1:
        weight = 1 - d
    else:
        weight = d
    return weight


@triton.jit
def _add(total, pixel, weight, EMULATE: tl.constexpr):
    """total + pixel x weight with one rounding. Triton's interpreter rounds twice, so it goes through float64."""
    if EMULATE:
        result = (total.to(tl.float64) + pixel.to(tl.float64) * weight.to(tl.float64)).to(tl.float32)
    else:
        result = tl.fma(pixel.to(tl.float32), weight, total)
    return result


@triton.jit
def _resample(
    source,
    result,
    numbers,
    pixel,
    inside,
    height,
    width,
    BICUBIC: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Read each pixel where an affine map says: offsets ax x' + bx y' + cx of columns and ay y' + by x' + cy of rows,
    with x' and y' the pixel's centre less (ox, oy)."""
    size = height * width
    row, column = pixel // width, pixel % width
    center_x, center_y = column.to(tl.float32) + 0.5, row.to(tl.float32) + 0.5
    x, y = center_x - tl.load(numbers + 3), center_y - tl.load(numbers + 7)
    right = tl.load(numbers) * x + tl.load(numbers + 1) * y + tl.load(numbers + 2)
    down = tl.load(numbers + 4) * y + tl.load(numbers + 5) * x + tl.load(numbers + 6)
    from_x, from_y = center_x + right, center_y + down
    seen = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    whole_right, whole_down = tl.floor(right), tl.floor(down)
    d_right, d_down = right - whole_right, down - whole_down
    first_column, first_row = column + whole_right.to(tl.int32), row + whole_down.to(tl.int32)
    red, green, blue = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    FIRST: tl.constexpr = 0 if BICUBIC else 1
    for i in tl.static_range(FIRST, 4 - FIRST):
        line = tl.minimum(tl.maximum(first_row + i - 1, 0), height - 1) * width
        for j in tl.static_range(FIRST, 4 - FIRST):
            place = source + line + tl.minimum(tl.maximum(first_column + j - 1, 0), width - 1)
            weight = _weight(d_down, i, BICUBIC) * _weight(d_right, j, BICUBIC)
            red = _add(red, tl.load(place, inside), weight, EMULATE)
            green = _add(green, tl.load(place + size, inside), weight, EMULATE)
            blue = _add(blue, tl.load(place + 2 * size, inside), weight, EMULATE)
    _store_sum(result, red, numbers + _FILL, pixel, inside, seen)
    _store_sum(result + size, green, numbers + _FILL + 1, pixel, inside, seen)
    _store_sum(result + 2 * size, blue, numbers + _FILL + 2, pixel, inside, seen)


@triton.jit
def _store_sum(result, total, fill, pixel, inside, seen):
    level = tl.minimum(tl.maximum(total + 1e-3, 0.0), 255.0).to(tl.int32)
    tl.store(result + pixel, tl.where(seen, level, tl.load(fill).to(tl.int32)).to(tl.uint8), inside)


@triton.jit
def turn(
    images,
    result,
    codes,
    numbers,
    tables,
    height,
    width,
    BICUBIC: tl.constexpr,
    EMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One operation, by its code, on each image."""
    size = height * width
    tiles = tl.cdiv(size, BLOCK)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside, code = pixel < size, tl.load(codes + 2 * image)
    source, there = images + image * 3 * size, result + image * 3 * size
    given, table = numbers + image * _NUMBERS, tables + tl.load(codes + 2 * image + 1) * 768
    if code == _RESAMPLE:
        _resample(source, there, given, pixel, inside, height, width, BICUBIC, EMULATE)
    elif code == _LOOK_UP:
        _copy_or_look_up(source, there, table, pixel, inside, size, True)
    elif code == _COLOR:
        _color(source, there, given, pixel, inside, size)
    elif code == _SHARPNESS:
        _sharpness(source, there, given, pixel, inside, height, width)
    elif code == _CUTOUT:
        _cutout(source, there, given, pixel, inside, height, width)
    else:
        _copy_or_look_up(source, there, table, pixel, inside, size, False)


@triton.jit
def levels(images, result, table, size, BLOCK: tl.constexpr):
    """Each pixel through its channel's row of the table (3, 256)."""
    tiles = tl.cdiv(size, BLOCK)
    plane = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    level = tl.load(images + plane * size + pixel, pixel < size).to(tl.int32)
    tl.store(result + plane * size + pixel, tl.load(table + plane % 3 * 256 + level, pixel < size), pixel < size)


INTERPRETED = isinstance(turn, interpreter.InterpretedFunction)  # on the CPU, for tests: few programs are fastest
BLOCK, HISTOGRAM_BLOCK = (1 << 14, 1 << 14) if INTERPRETED else (512, 4096)  # pixels of a program


@torch.library.custom_op("cotnet::augmentation_turn", mutates_args=())
def apply_turn(
    images: torch.Tensor, codes: torch.Tensor, numbers: torch.Tensor, tables: torch.Tensor, *, bicubic: bool
) -> torch.Tensor:
    """The images (n, 3, H, W) after one operation each. codes: (n, 2) int32, the operation and the row of its table;
    numbers: (n, NUMBERS) float32; tables: (m, 3, 256) uint8, at least one."""
    result = torch.empty_like(images)
    height, width = images.shape[-2:]
    programs = len(images) * triton.cdiv(height * width, BLOCK)
    how = {"BICUBIC": bicubic, "EMULATE": INTERPRETED, "BLOCK": BLOCK, "enable_fp_fusion": False}
    with torch.cuda.device_of(images):
        turn[(programs,)](images, result, codes, numbers, tables, height, width, **how)
    return result


@triton.jit
def count(images, result, size, BLOCK: tl.constexpr):
    """How often each level occurs in a channel; integers, so their order of addition changes nothing."""
    tiles = tl.cdiv(size, BLOCK)
    plane = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    level = tl.load(images + plane * size + pixel, pixel < size, 0).to(tl.int32)
    counts = tl.histogram(level, 256, mask=pixel < size)
    place = tl.arange(0, 256)
    tl.atomic_add(result + plane * 256 + place, counts, counts > 0)


@torch.library.custom_op("cotnet::count_levels", mutates_args=())
def count_levels(images: torch.Tensor) -> torch.Tensor:
    """Histograms (n, 3, 256) int32 of contiguous uint8 images (n, 3, H, W)."""
    result = images.new_zeros(len(images), 3, 256, dtype=torch.int32)
    size = images.shape[-2] * images.shape[-1]
    with torch.cuda.device_of(images):
        count[(images.shape[0] * 3 * triton.cdiv(size, HISTOGRAM_BLOCK),)](images, result, size, BLOCK=HISTOGRAM_BLOCK)
    return result


@torch.library.custom_op("cotnet::look_up_levels", mutates_args=())
def look_up_levels(images: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """table[c, images[n, c, y, x]] for contiguous uint8 images (n, 3, H, W) and a table (3, 256), of its dtype."""
    result = torch.empty_like(images, dtype=table.dtype)
    size = images.shape[-2] * images.shape[-1]
    with torch.cuda.device_of(images):
        levels[(images.shape[0] * 3 * triton.cdiv(size, BLOCK),)](images, result, table, size, BLOCK=BLOCK)
    return result
