"""The Triton kernel of RoIAlign's gradient: each pixel adds its boxes' shares in their order (no atomics).

A program owns a tile of pixels and some channels. It looks at every box of its image, and adds those that reach it.
"""

import triton
import triton.language as tl


@triton.jit
def _reaches(low, high, first, LENGTH, TILE: tl.constexpr):
    """Whether samples from low to high count in one of the pixels from first to first + TILE - 1."""
    return (tl.clamp(low, 0.0, LENGTH - 1.0) < first + TILE) & (tl.clamp(high, 0.0, LENGTH - 1.0) > first - 1)


@triton.jit
def _weights(pixels, start, side, samples, LENGTH):
    """How much each pixel counts in a bin that begins at start: the mean over its samples."""
    total = tl.zeros_like(pixels)
    for sample in range(samples):
        at = start + (sample + 0.5) * side / samples
        share = tl.maximum(1 - tl.abs(tl.clamp(at, 0.0, LENGTH - 1.0) - pixels), 0)
        total += tl.where((at >= -1) & (at <= LENGTH), share, 0)
    return total / tl.maximum(samples, 1)


@triton.jit(do_not_specialize=["DEPTH", "HEIGHT", "WIDTH"])
def add_boxes(
    UPSTREAM,  # (boxes, SIDE, SIDE, DEPTH) float32
    ROIS,  # (boxes, 5) float32: image, left, top, right, bottom
    FIRST,  # (images + 1,) int64: the boxes of an image are FIRST[image] to FIRST[image + 1]
    RESULT,  # (images, HEIGHT, WIDTH, DEPTH) float32
    scale,
    DEPTH,
    HEIGHT,
    WIDTH,
    SIDE: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes the gradient of one tile, for one image and CHANNELS channels."""
    tile, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    across = tl.cdiv(WIDTH, TILE)
    top, left = tile // across * TILE, tile % across * TILE
    places = tl.arange(0, TILE * TILE)
    rows, columns = top + places // TILE, left + places % TILE
    total = tl.zeros((TILE * TILE, CHANNELS), tl.float32)
    for box in range(tl.load(FIRST + image), tl.load(FIRST + image + 1)):
        x = tl.load(ROIS + box * 5 + 1) * scale - 0.5
        y = tl.load(ROIS + box * 5 + 2) * scale - 0.5
        width = tl.load(ROIS + box * 5 + 3) * scale - 0.5 - x
        height = tl.load(ROIS + box * 5 + 4) * scale - 0.5 - y
        if _reaches(y, y + height, top, HEIGHT, TILE) & _reaches(x, x + width, left, WIDTH, TILE):
            # As exact as torchvision's kernel divides: one sample more or less would be another gradient.
            high, wide = tl.div_rn(height, SIDE * 1.0), tl.div_rn(width, SIDE * 1.0)
            samples_y, samples_x = tl.ceil(high).to(tl.int32), tl.ceil(wide).to(tl.int32)
            for i in range(SIDE):
                if _reaches(y + i * high, y + (i + 1) * high, top, HEIGHT, TILE):
                    down = _weights(rows.to(tl.float32), y + i * high, high, samples_y, HEIGHT)
                    for j in range(SIDE):
                        if _reaches(x + j * wide, x + (j + 1) * wide, left, WIDTH, TILE):
                            share = down * _weights(columns.to(tl.float32), x + j * wide, wide, samples_x, WIDTH)
                            place = ((box * SIDE + i) * SIDE + j) * DEPTH
                            upstream = tl.load(UPSTREAM + place + channels, mask=channels < DEPTH, other=0.0)
                            total += share[:, None] * upstream[None]
    inside = ((rows < HEIGHT) & (columns < WIDTH))[:, None] & (channels < DEPTH)[None]
    places = ((image * HEIGHT + rows) * WIDTH + columns)[:, None] * DEPTH + channels[None]
    tl.store(RESULT + places, total, mask=inside)
