"""The Triton kernels of local aggregation: the sums, and both gradients at once.

A thread owns a few weights' positions, and all rows of channels that share these weights: it reads each weight once,
keeps the rows' sums in registers, and sums the weights' gradient alone (no atomics, the same bits every time). So the
registers do not grow with K. Values that several kernel positions read come from the cache. A tap is one of the K * K
kernel positions.

Strides of maps within a sample are constants of the compiled kernel, so that rows are offsets in the load instructions.
In channels last no constant depends on the size of the maps: detectors see hundreds of sizes, and a kernel takes a
second or two to compile. (K = 7 with contiguous weights would spill: their strides stay constants.) Contiguous, all
sizes and strides are constants. A tap outside the map reads the own position with weight 0: there is no branch, and for
K = 3 no loop. (Unrolled, K = 7 takes a minute to compile.) Strides are (sample, part) as arguments; (row, group,
position) of maps and (tap, group, position) of weights. Sums have the type SUM.
"""

import triton
import triton.language as tl


@triton.jit
def _elements(
    PARTS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEIGHT,
    WIDTH,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This program's sample, part, and BLOCK elements in memory order: group, position, and whether it exists.

    Elements beyond the last one wrap around to others, so every address is valid.
    """
    area = HEIGHT * WIDTH
    blocks = (GROUPS * area + BLOCK - 1) // BLOCK
    index = tl.program_id(0)
    block = index % blocks
    if WIDE:
        block = block.to(tl.int64)
    element = block * BLOCK + tl.arange(0, BLOCK)
    if LAST:
        group, position = element % GROUPS, element // GROUPS % area
    else:
        group, position = element // area % GROUPS, element % area
    sample = (index // blocks).to(tl.int64)
    return sample // PARTS, sample % PARTS, group, position, element < GROUPS * area


@triton.jit
def _look(
    position,
    line,
    COLUMN: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    HEIGHT,
    WIDTH,
):
    """The position that the tap at a kernel's line and column sees, and whether it is inside the map.

    Outside, the own position.
    """
    dy, dx = DILATION * (line - KERNEL // 2), DILATION * (COLUMN - KERNEL // 2)
    y, x = position // WIDTH + dy, position % WIDTH + dx
    inside = (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    return tl.where(inside, position + (dy * WIDTH + dx), position), inside


@triton.jit(do_not_specialize=["HEIGHT", "WIDTH"])
def sums(
    value,
    weight,
    result,
    value_strides,
    weight_strides,
    result_strides,
    VALUE: tl.constexpr,
    WEIGHT,
    RESULT: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEIGHT,
    WIDTH,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
):
    """result[row, position] = sum over taps of value[row, position + tap] * weight[tap, position]."""
    sample, part, group, position, own = _elements(PARTS, GROUPS, HEIGHT, WIDTH, LAST, WIDE, BLOCK)
    value += sample * value_strides[0] + part * value_strides[1]
    weight += sample * weight_strides[0] + part * weight_strides[1]
    result += sample * result_strides[0] + part * result_strides[1]
    totals = ()
    for _ in tl.static_range(ROWS):
        totals = totals + (tl.zeros([BLOCK], SUM),)
    for line in tl.range(KERNEL, loop_unroll_factor=KERNEL if KERNEL <= 3 else 1):
        for column in tl.static_range(KERNEL):
            seen, inside = _look(position, line, column, KERNEL, DILATION, HEIGHT, WIDTH)
            tap = line * KERNEL + column
            at = weight + (group * WEIGHT[1] + position * WEIGHT[2] + tap * WEIGHT[0])
            weights = tl.load(at, inside, 0.0).to(SUM)
            at = value + (group * VALUE[1] + seen * VALUE[2])
            before = totals
            totals = ()
            for row in tl.static_range(ROWS):
                totals = totals + (before[row] + tl.load(at + row * VALUE[0]).to(SUM) * weights,)
    at = result + (group * RESULT[1] + position * RESULT[2])
    for row in tl.static_range(ROWS):
        tl.store(at + row * RESULT[0], totals[row].to(result.dtype.element_ty), own)


@triton.jit(do_not_specialize=["HEIGHT", "WIDTH"])
def gradients(
    upstream,
    value,
    weight,
    result,
    added,
    upstream_strides,
    value_strides,
    weight_strides,
    result_strides,
    added_strides,
    UPSTREAM: tl.constexpr,
    VALUE: tl.constexpr,
    WEIGHT,
    RESULT: tl.constexpr,
    ADDED,
    NEED_VALUE: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEIGHT,
    WIDTH,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
):
    """result[row, position] = sum over taps of upstream[row, position - tap] * weight[tap, position - tap], and
    added[tap, position] = sum over rows of value[row, position + tap] * upstream[row, position].

    The position that a tap sees is also the one from which the opposite tap sees this position.
    """
    sample, part, group, position, own = _elements(PARTS, GROUPS, HEIGHT, WIDTH, LAST, WIDE, BLOCK)
    upstream += sample * upstream_strides[0] + part * upstream_strides[1]
    value += sample * value_strides[0] + part * value_strides[1]
    weight += sample * weight_strides[0] + part * weight_strides[1]
    result += sample * result_strides[0] + part * result_strides[1]
    added += sample * added_strides[0] + part * added_strides[1]
    totals = ()
    ups = ()
    for row in tl.static_range(ROWS):
        totals = totals + (tl.zeros([BLOCK], SUM),)
        if NEED_WEIGHT:
            at = upstream + (group * UPSTREAM[1] + position * UPSTREAM[2]) + row * UPSTREAM[0]
            ups = ups + (tl.load(at).to(SUM),)
    for line in tl.range(KERNEL, loop_unroll_factor=KERNEL if KERNEL <= 3 else 1):
        for column in tl.static_range(KERNEL):
            seen, inside = _look(position, line, column, KERNEL, DILATION, HEIGHT, WIDTH)
            tap = line * KERNEL + column
            if NEED_VALUE:
                at = weight + (group * WEIGHT[1] + seen * WEIGHT[2] + (KERNEL * KERNEL - 1 - tap) * WEIGHT[0])
                weights = tl.load(at, inside, 0.0).to(SUM)
                at = upstream + (group * UPSTREAM[1] + seen * UPSTREAM[2])
                before = totals
                totals = ()
                for row in tl.static_range(ROWS):
                    totals = totals + (before[row] + tl.load(at + row * UPSTREAM[0]).to(SUM) * weights,)
            if NEED_WEIGHT:
                at = value + (group * VALUE[1] + seen * VALUE[2])
                total = tl.zeros([BLOCK], SUM)
                for row in tl.static_range(ROWS):
                    total += tl.load(at + row * VALUE[0]).to(SUM) * ups[row]
                total = tl.where(inside, total, 0.0).to(added.dtype.element_ty)
                tl.store(added + (group * ADDED[1] + position * ADDED[2] + tap * ADDED[0]), total, own)
    if NEED_VALUE:
        at = result + (group * RESULT[1] + position * RESULT[2])
        for row in tl.static_range(ROWS):
            tl.store(at + row * RESULT[0], totals[row].to(result.dtype.element_ty), own)
