"""The Triton kernels of local aggregation: the sums, and both gradients at once.

A program owns a tile of weight groups and positions, and loops over the rows of channels that share these groups. It
reads each weight once and keeps it in registers, and sums its gradient alone: no atomics, the same bits every time.
Values that several kernel positions read come from the cache. A tap is one of the K * K kernel positions. Strides are
(sample, channel, position) for maps and (sample, group, tap, position) for weights; sums have the type SUM.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(height, width, groups, WIDE: tl.constexpr, LAST: tl.constexpr, TILE: tl.constexpr, TILE_GROUPS: tl.constexpr):
    """This program's sample, groups (TILE_GROUPS, 1) and positions (1, TILE); programs run in memory order."""
    index = tl.program_id(0)
    tiles, group_tiles = tl.cdiv(height * width, TILE), tl.cdiv(groups, TILE_GROUPS)
    if LAST:
        group_tile, tile = index % group_tiles, index // group_tiles % tiles
    else:
        group_tile, tile = index // tiles % group_tiles, index % tiles
    group = group_tile * TILE_GROUPS + tl.arange(0, TILE_GROUPS)[:, None]
    position = tile * TILE + tl.arange(0, TILE)[None, :]
    if WIDE:
        group, position = group.to(tl.int64), position.to(tl.int64)
    return (index // (tiles * group_tiles)).to(tl.int64), group, position


@triton.jit
def _inside(y, x, height, width):
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _place(tensor, strides, sample, group, position):
    """A pointer to the sample, and the offsets of the tile from it (for weights, of tap 0)."""
    return tensor + sample * strides[0], group * strides[1] + position * strides[len(strides) - 1]


@triton.jit
def _offset(TAP: tl.constexpr, KERNEL: tl.constexpr, DILATION: tl.constexpr):
    """Lines and columns from a position to the pixel of a tap."""
    return DILATION * (TAP // KERNEL - KERNEL // 2), DILATION * (TAP % KERNEL - KERNEL // 2)


@triton.jit
def sums(
    value,
    weight,
    result,
    height,
    width,
    rows,
    value_strides,
    weight_strides,
    result_strides,
    GROUPS: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    WIDE: tl.constexpr,
    LAST: tl.constexpr,
    TILE: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    SUM: tl.constexpr,
):
    """result[position] = sum over taps of value[position + tap] * weight[tap, position], row by row."""
    sample, group, position = _tile(height, width, GROUPS, WIDE, LAST, TILE, TILE_GROUPS)
    y, x = position // width, position % width
    own = (group < GROUPS) & (position < height * width)
    value, value_at = _place(value, value_strides, sample, group, position)
    weight, weight_at = _place(weight, weight_strides, sample, group, position)
    result, result_at = _place(result, result_strides, sample, group, position)
    stride = tl.full([], GROUPS, tl.int64)  # from row to row
    weights = ()
    for _ in tl.static_range(KERNEL * KERNEL):
        weights = weights + (tl.load(weight + weight_at, own, 0.0),)
        weight += weight_strides[2]
    for _ in range(rows):
        total = tl.zeros([TILE_GROUPS, TILE], SUM)
        for tap in tl.static_range(KERNEL * KERNEL):
            dy, dx = _offset(tap, KERNEL, DILATION)
            there = own & _inside(y + dy, x + dx, height, width)
            values = tl.load(value + (value_at + (dy * width + dx) * value_strides[2]), there, 0.0)
            total += values.to(SUM) * weights[tap].to(SUM)
        tl.store(result + result_at, total.to(result.dtype.element_ty), own)
        value += stride * value_strides[1]
        result += stride * result_strides[1]


@triton.jit
def gradients(
    upstream,
    value,
    weight,
    value_gradient,
    weight_gradient,
    height,
    width,
    rows,
    upstream_strides,
    value_strides,
    weight_strides,
    result_strides,
    sum_strides,
    NEED_VALUE: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    GROUPS: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    WIDE: tl.constexpr,
    LAST: tl.constexpr,
    TILE: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    SUM: tl.constexpr,
):
    """value_gradient[position] = sum over taps of upstream[position - tap] * weight[tap, position - tap], and
    weight_gradient[tap, position] = sum over rows of value[position + tap] * upstream[position].
    """
    sample, group, position = _tile(height, width, GROUPS, WIDE, LAST, TILE, TILE_GROUPS)
    y, x = position // width, position % width
    own = (group < GROUPS) & (position < height * width)
    upstream, upstream_at = _place(upstream, upstream_strides, sample, group, position)
    value, value_at = _place(value, value_strides, sample, group, position)
    weight, weight_at = _place(weight, weight_strides, sample, group, position)
    value_gradient, result_at = _place(value_gradient, result_strides, sample, group, position)
    weight_gradient, sum_at = _place(weight_gradient, sum_strides, sample, group, position)
    stride = tl.full([], GROUPS, tl.int64)  # from row to row
    weights = ()
    added = ()
    for tap in tl.static_range(KERNEL * KERNEL):
        dy, dx = _offset(tap, KERNEL, DILATION)
        if NEED_VALUE:
            there = own & _inside(y - dy, x - dx, height, width)
            at = weight_at - (dy * width + dx) * weight_strides[3]
            weights = weights + (tl.load(weight + at, there, 0.0),)
            weight += weight_strides[2]
        if NEED_WEIGHT:
            added = added + (tl.zeros([TILE_GROUPS, TILE], SUM),)
    for _ in range(rows):
        total = tl.zeros([TILE_GROUPS, TILE], SUM)
        ups = tl.load(upstream + upstream_at, own, 0.0).to(SUM)
        before = added
        added = ()
        for tap in tl.static_range(KERNEL * KERNEL):
            dy, dx = _offset(tap, KERNEL, DILATION)
            if NEED_VALUE:
                there = own & _inside(y - dy, x - dx, height, width)
                near = tl.load(upstream + (upstream_at - (dy * width + dx) * upstream_strides[2]), there, 0.0)
                total += near.to(SUM) * weights[tap].to(SUM)
            if NEED_WEIGHT:
                there = own & _inside(y + dy, x + dx, height, width)
                values = tl.load(value + (value_at + (dy * width + dx) * value_strides[2]), there, 0.0)
                added = added + (before[tap] + values.to(SUM) * ups,)
        if NEED_VALUE:
            tl.store(value_gradient + result_at, total.to(value_gradient.dtype.element_ty), own)
        upstream += stride * upstream_strides[1]
        value += stride * value_strides[1]
        value_gradient += stride * result_strides[1]
    if NEED_WEIGHT:
        for tap in tl.static_range(KERNEL * KERNEL):
            tl.store(weight_gradient + sum_at, added[tap].to(weight_gradient.dtype.element_ty), own)
            weight_gradient += sum_strides[2]
